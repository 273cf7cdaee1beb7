"""Forms of the console's pages of routers and providers."""

from typing import Any
from urllib.parse import urlsplit

from django import forms

from accounts.models import Role
from opengate.console_forms import LongSelect, MergingForm
from opengate.encryption import mask
from routing.models import Provider, Router, RouterName
from usage.matrix import Heading, MatrixField
from usage.models import Limit


class ProviderForm(MergingForm):
    """The key is written, never shown: an empty field leaves it as it is."""

    new_key = forms.CharField(
        label="Key",
        required=False,
        strip=True,
        validators=Provider._meta.get_field("key").validators,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
    )
    remove_key = forms.BooleanField(required=False, label="Remove the stored key")

    class Meta:
        model = Provider
        fields = (
            "router",
            "type",
            "model_name",
            "url",
            "timeout",
            "model_hosting_zone",
            "model_total_params",
            "model_active_params",
            "cost_prompt_tokens",
            "cost_completion_tokens",
            "qos_metric",
            "qos_limit",
        )
        widgets = {"model_hosting_zone": LongSelect}
        labels = {
            "url": "Address",
            "timeout": "Timeout, seconds",
            "model_hosting_zone": "Country",
            "model_total_params": "Parameters",
            "model_active_params": "Active parameters",
            "cost_prompt_tokens": "Prompt cost",
            "cost_completion_tokens": "Completion cost",
            "qos_metric": "QoS metric",
            "qos_limit": "QoS limit",
        }
        help_texts = {
            "timeout": "",
            "model_hosting_zone": "Where the model runs, for its carbon: a code of ISO 3166-1, such as FRA, or WOR for "
            "the world's average.",
            "model_total_params": "Billions; 0 is unknown.",
            "model_active_params": "Billions that a token uses; 0 is unknown.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        stored = self.instance.key if self.instance.pk else None
        if "new_key" in self.fields:
            self.fields["new_key"].help_text = (
                f"Stored: {mask(stored)}. Empty leaves it." if stored else "None is stored."
            )

    def clean(self) -> dict[str, Any]:
        """A stored key goes to no other host than the one it was given for."""
        given = super().clean()
        is_settled = given.get("new_key") or given.get("remove_key") or not self.instance.key
        if self.instance.pk and "url" in given and not is_settled:
            wanted = Provider(type=given.get("type", ""), url=given["url"]).completed_url()
            if urlsplit(wanted)[:2] != urlsplit(self.initial["url"])[:2]:
                self.add_error("new_key", "The address changes: type the key again, or remove it.")
        return given

    def save(self, commit: bool = True) -> Any:
        if self.cleaned_data.get("new_key"):
            self.instance.key = self.cleaned_data["new_key"]
        elif self.cleaned_data.get("remove_key"):
            self.instance.key = None
        return super().save(commit)


class Names(forms.Field):
    """Names, one a line."""

    widget = forms.Textarea

    def prepare_value(self, value: Any) -> str:
        return value if isinstance(value, str) else "\n".join(value or ())

    def to_python(self, value: Any) -> list[str]:
        lines = value.splitlines() if isinstance(value, str) else value or ()
        return [line.strip() for line in lines if line.strip()]

    def has_changed(self, initial: Any, data: Any) -> bool:
        return self.to_python(initial) != self.to_python(data)


class RouterForm(MergingForm):
    aliases = Names(
        required=False,
        show_hidden_initial=True,
        widget=forms.Textarea(attrs={"rows": 4, "spellcheck": "false"}),
        help_text="Further names that callers may use, one a line.",
    )
    limits = MatrixField(label="Limits")

    may_limit = True

    class Meta:
        model = Router
        fields = ("name", "type", "load_balancing_strategy", "cost_prompt_tokens", "cost_completion_tokens")
        labels = {
            "load_balancing_strategy": "Load balancing",
            "cost_prompt_tokens": "Prompt price",
            "cost_completion_tokens": "Completion price",
        }
        help_texts = {
            "name": "What callers write as the model.",
            "cost_prompt_tokens": "Of a million tokens; 0 is free.",
            "cost_completion_tokens": "Of a million tokens; 0 is free.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.held: list[str] = []
        if self.instance.pk:
            self.held = [row.value for row in self.instance.names.all() if row.is_alias]
        self.initial["aliases"] = self.held
        if "limits" in self.fields:
            field: Any = self.fields["limits"]
            field.fill((Heading(id, name) for id, name in Role.objects.values_list("id", "name")), "role")
            field.disabled = not self.may_limit
            limits = Limit.objects.filter(router=self.instance.pk) if self.instance.pk else Limit.objects.none()
            self.initial["limits"] = {
                (role, type): value for role, type, value in limits.values_list("role", "type", "value")
            }

    def clean_aliases(self) -> list[str]:
        """What the router's aliases are to be: those of now, less those that were taken out, and those put in."""
        given: list[str] = self.cleaned_data["aliases"]
        faults = [f"{alias} is there twice." for alias in dict.fromkeys(given) if given.count(alias) > 1]
        longest = RouterName._meta.get_field("value").max_length or 0
        faults += [f"{alias[:40]}… has more than {longest} characters." for alias in given if len(alias) > longest]
        if any("\x00" in alias for alias in given):
            faults.append("Null characters are not allowed.")
        if faults:
            raise forms.ValidationError(faults)
        if not self.instance.pk:
            return given
        before = self._before()
        gone = set(before) - set(given)
        merged = [alias for alias in self.held if alias not in gone]
        return merged + [alias for alias in given if alias not in before and alias not in merged]

    def _before(self) -> list[str]:
        """The aliases as the page showed them."""
        bound: Any = self["aliases"]
        names: list[str] = bound.field.to_python(self.data.get(bound.html_initial_name, self.held))
        return names

    def clean(self) -> dict[str, Any]:
        given = super().clean()
        name, aliases = given.get("name"), given.get("aliases", [])
        if name in aliases:
            self.add_error("aliases", f"{name} is the router's own name.")
        elif aliases:
            others = RouterName.objects.filter(value__in=aliases).exclude(router_id=self.instance.pk)
            taken = others.select_related("router")
            faults = [f"{row.value} is already a name of {row.router.name}." for row in taken]
            if faults:
                self.add_error("aliases", forms.ValidationError(faults))
        return given
