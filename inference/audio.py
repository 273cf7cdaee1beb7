"""A transcription that a caller asks for: the file where it lies, and the fields of the form."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Final

TEXT_FORMATS: Final = frozenset({"text", "srt", "vtt"})  # the answer is no JSON
PLAIN_FORMATS: Final = frozenset({"", "json", "text"})  # of the words alone, without times


@dataclass(frozen=True, slots=True)
class Transcription:
    """`open` answers a new handle on the file, which whoever reads it closes; empty fields were not given.

    Without a format JSON is meant; `language` is a code. `others` are fields that the gateway does not know.
    """

    open: Callable[[], BinaryIO]
    filename: str
    content_type: str
    response_format: str = ""
    language: str = ""
    prompt: str = ""
    temperature: float | None = None
    others: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def fields(self) -> dict[str, Sequence[str]]:
        """The form's fields but for file and model, those that were given."""
        given = {
            "language": self.language,
            "prompt": self.prompt,
            "response_format": self.response_format,
            "temperature": "" if self.temperature is None else f"{self.temperature:g}",
        }
        return {**self.others, **{name: [value] for name, value in given.items() if value}}

    def read(self) -> bytes:
        """The whole file, for dialects that send it inside of JSON."""
        with self.open() as source:
            return source.read()


# What callers may write for a language, and its code.
_NAMES = """
af afrikaans, am amharic, ar arabic, as assamese, az azerbaijani, ba bashkir, be belarusian, bg bulgarian, bn bengali,
bo tibetan, br breton, bs bosnian, ca catalan/valencian, cs czech, cy welsh, da danish, de german, el greek, en english,
es castilian/spanish, et estonian, eu basque, fa persian, fi finnish, fo faroese, fr french, gl galician, gu gujarati,
ha hausa, haw hawaiian, he hebrew, hi hindi, hr croatian, ht haitian/haitian creole, hu hungarian, hy armenian,
id indonesian, is icelandic, it italian, ja japanese, jw javanese, ka georgian, kk kazakh, km khmer, kn kannada,
ko korean, la latin, lb letzeburgesch/luxembourgish, ln lingala, lo lao, lt lithuanian, lv latvian, mg malagasy,
mi maori, mk macedonian, ml malayalam, mn mongolian, mr marathi, ms malay, mt maltese, my burmese/myanmar, ne nepali,
nl dutch/flemish, nn nynorsk, no norwegian, oc occitan, pa panjabi/punjabi, pl polish, ps pashto/pushto, pt portuguese,
ro moldavian/moldovan/romanian, ru russian, sa sanskrit, sd sindhi, si sinhala/sinhalese, sk slovak, sl slovenian,
sn shona, so somali, sq albanian, sr serbian, su sundanese, sv swedish, sw swahili, ta tamil, te telugu, tg tajik,
th thai, tk turkmen, tl tagalog, tr turkish, tt tatar, uk ukrainian, ur urdu, uz uzbek, vi vietnamese, yi yiddish,
yo yoruba, yue cantonese, zh chinese/mandarin
"""


def _languages() -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in " ".join(_NAMES.split()).split(", "):
        code, _, names = entry.partition(" ")
        found |= dict.fromkeys((code, *names.split("/")), code)
    return found


LANGUAGES: Final = _languages()
