"""The playground's addresses; `opengate.asgi` takes `/playground/chat`, the chat itself, before Django."""

from django.urls import path

from opengate.playground import account, chat, consumption, entitlement, keys, looking, snippets

app_name = "playground"
urlpatterns = [
    path("", chat.Chat.as_view(), name="chat"),
    path("/login", account.Login.as_view(), name="login"),
    path("/logout", account.Logout.as_view(), name="logout"),
    path("/search", looking.Search.as_view(), name="search"),
    path("/keys", keys.Keys.as_view(), name="keys"),
    path("/keys/<int:key>/revoke", keys.Revoke.as_view(), name="revoke"),
    path("/usage", consumption.Usage.as_view(), name="usage"),
    path("/usage.csv", consumption.UsageCSV.as_view(), name="usage-csv"),
    path("/limits", entitlement.Limits.as_view(), name="limits"),
    path("/snippets", snippets.Snippets.as_view(), name="snippets"),
    path("/password", account.Password.as_view(), name="password"),
    path("/", chat.ToChat.as_view()),
]
