// Files that are too large are told before they are sent.
"use strict";

document.addEventListener("change", (event) => {
  const input = event.target;
  if (!input.matches("input[type=file][data-most]")) return;
  const { most, mostTogether, mostFiles } = input.dataset;
  const files = [...input.files];
  const large = files.find((file) => file.size > Number(most));
  const together = files.reduce((sum, file) => sum + file.size, 0);
  const mib = (bytes) => `${Math.floor(bytes / 1048576)} MiB`;
  let fault = "";
  if (large) fault = `${large.name}: ${mib(most)} at most.`;
  else if (together > Number(mostTogether)) fault = `Together ${mib(mostTogether)} at most: send fewer at a time.`;
  else if (files.length > Number(mostFiles)) fault = `${mostFiles} files at a time.`;
  input.setCustomValidity(fault);
  input.reportValidity();
});
