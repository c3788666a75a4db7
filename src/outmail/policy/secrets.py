"""Masks secrets in text. The kinds of secrets are data.

A kind is an expression or a scanner, with examples: ``«…»`` marks what must be masked, and the texts in
``NOT_SECRET`` must stay unchanged. The tests are made of these examples, so a new kind is one entry here.
Promises: never raises; takes time linear in the text, because every expression is bounded or consumes what it
has looked at.
Does not: find a secret that neither its name nor its form reveals, unless `veil.known` has been told it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from outmail.policy.veil import MASK, known

Put = Callable[[re.Match[str]], str]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of secret. ``hints``: texts in lower case, of which at least one occurs wherever this kind
    occurs; ``found``: text → masked text.
    """

    name: str
    hints: tuple[str, ...]
    found: Callable[[str], str] = field(repr=False)
    examples: tuple[str, ...]


def masked(text: str) -> str:
    """``text`` with ``****`` for what is, or looks like, a secret."""
    text = known.over(text)
    low = text.lower()
    for kind in KINDS:
        if any(hint in low for hint in kind.hints):
            text = kind.found(text)
    return text


# -- names with values ---------------------------------------------------------------------------------------

_NAME = (
    r"(?:(?i:password|passwd|passphrase|passcode|passwort|secret|token|api[_ -]?key|access[_-]?key"
    r"|private[_-]?key|account[_-]?key"
    r"|signing[_-]?key|encryption[_-]?key|master[_-]?key|credential|authorization|cookie|session[_-]?id)|"
    r"(?<![A-Za-z])(?i:pass|pwd|pw|auth)(?![A-Za-z])"
    r"|(?<=[a-z])(?:Pwd|Auth)(?![a-z]))"
)
#: What may follow the telling part of a name. A name with another ending names something else than the
#: secret.
_TAIL = r"(?P<many>s?)(?![a-z])(?P<tail>[\w-]{0,40}+)"
_NOT_THE_SECRET = re.compile(
    r"[_-]?(?:files?|path|dir|folder|command|cmd|prompt|types?|names?|ids?|length|len|bucket|count|limit|ttl"
    r"|url|uri|expir\w*|age|policy|field|hint|endpoint|method|sock|socket|reset)\Z",
    re.I,
)
_HEAD = re.compile(
    _NAME
    + _TAIL
    + r"(?P<close>(?:\\{0,4}[\"'`])?)\]?(?:: ?(?:Optional\[)?(?:str|bytes|SecretStr|string|String|Any)\b\]?"
    r"(?: \| None)? ?(?==(?!=)))?"
    r"(?:[ \t]{0,8}(?P<sep>=>|:=|=(?!=)|:(?!:))[ \t]{0,40}|(?<=[\"'`])[ \t]{0,4}(?P<pair>,)[ \t]{0,4}"
    r"(?=[bu]?\\{0,4}[\"']))"
)
_OPEN = re.compile(r"[bBrRuUfF]{0,2}(?P<quote>\\{0,4}[\"'`])")
_INSIDE = {
    '"': re.compile(r'(?:[^"\\\n]|\\.)*+'),
    "'": re.compile(r"(?:[^'\\\n]|\\.|'')*+"),
    "`": re.compile(r"[^`\n]*+"),
}
_BARE = re.compile(r"[^\s\"'`&;]++")
_REST = re.compile(r"[^\n\r]*+")
_HEADER_REST = re.compile(r"[^\n\r\"'`]*+")
_BLOCK = re.compile(r"[|>][+-]?[ \t]{0,8}\r?\n[ \t]{1,40}([^\n]*+)")
_PROSE = re.compile(
    r"(?i:was|were|is|are|has|have|had|must|should|shall|cannot|can|may|might|will|would|does|do|did|be|been"
    r"|not|no|too|the|a|an|this|that|it|its|for|from|to|of|in|on|by|with|and|or"
    r"|invalid|incorrect|wrong|required|missing|expired|changed|reset|failed|failure|empty|none|yes|unknown"
    r"|unset|undefined|unexpected|expected|denied|rejected|bad|str|bytes|int|bool"
    r"|optional|string|ok|redacted|masked|hidden|permission|input)(?![\w@%+/=-])"
)
_EMPTY = re.compile(
    r"(?i:none|null|nil|true|false|undefined|unset|empty)(?![\w@%+/=-])|\*{2,}|…|<[\w -]{1,40}>|%s"
    r"|%\(\w{1,40}\)s|\$\{|\$\(|\$[A-Z_]{2,40}\b|\{\{?|[\[({\])},.;]|\.{3}"
)
_COUNT = re.compile(r"\d[\d,.]{0,20}(?![\w-])")
#: The place of a secret is not secret: an absolute path, or a URL without user and query.
_PLACE = re.compile(
    r"(?:/[a-z]{2,20}(?:/[\w.-]{1,80}){1,20}+/?|https?://[\w.-]{1,200}(?::\d{1,5})?"
    r"(?:/[\w.-]{1,80}){0,20}+/?)(?=[\s\"'`&;,)\]}]|\Z)"
)
#: The rest of a file's name: `/etc/passwd: Permission denied` is about a file.
_FILE = re.compile(r"[\w.-]*+")
_LIST = re.compile(r"\[[ \t]{0,4}(?=[bu]?[\"'])([^\]\n]++)")
_BARE_END = "\"'`&; \t\r\n\f\v"
_WHOLE_WORD = re.compile(r"[^\s&;]++")
#: In a line that names a user, the value of a short name is that user's password: "user=bob pass: x".
_LOGIN = re.compile(r"(?i:\b(?:user|login|uid|account)\w{0,20}[=:])")
_LOGGED = re.compile(r"(?i:users?|clients?|login|session|request|server)(?=[ \t])")
_FEW = re.compile(r"\d{1,4}(?![\w.-])")
_CODE = re.compile(r"(?:[A-Za-z_][\w.]{0,200}+)(?:[(\[,)]|\s|\Z)")
_SCHEME = re.compile(r"[A-Za-z][\w-]{1,30}[ \t]{1,4}(?=\S)")
_LINE_START = re.compile(
    r"[\s>|#*-]{0,40}(?:export |set |env |[CS<>]: ?|-H )?[\"'\[]{0,2}[\w.-]{0,60}\Z", re.I
)
#: Names that are also ordinary words.
_SHORT = ("pass:", "pass ", "pass=", "pw:", "pwd:", "auth:", "auth ")
#: How many characters before a name are looked at.
_BACK = 400


def _assignments(text: str) -> str:
    """Values after telling names: ``password: x``, ``"token": "x"``, ``API_KEY=x``, ``('secret', 'x')`` …"""
    out: list[str] = []
    at = 0
    for head in _HEAD.finditer(text):
        if head.start() < at:
            continue
        span = _value(text, head)
        if span is not None and span[0] < span[1]:
            out += (text[at : span[0]], MASK)
            at = span[1]
    return "".join([*out, text[at:]]) if out else text


def _value(text: str, head: re.Match[str]) -> tuple[int, int] | None:
    """Where the value of this name stands, or None when it is no secret."""
    at, name = head.end(), head[0].lower()
    if _NOT_THE_SECRET.match(head["tail"]):
        return None
    # the value of a header extends to the end of its line
    wide = name.startswith(("authorization", "cookie"))
    opened = _OPEN.match(text, at)
    if opened:
        return _quoted(text, opened, wide)
    if head["pair"]:
        return None
    if (block := _BLOCK.match(text, at)) and head["sep"] == ":":
        return block.span(1)
    if not head["many"] and (items := _LIST.match(text, at)):
        return items.span(1)
    before = text[max(0, head.start() - _BACK) : head.start()]
    if _says_nothing(text, head, before):
        return None
    if wide:
        scheme = _SCHEME.match(text, at) if name.startswith("auth") else None
        rest = _HEADER_REST.match(text, scheme.end() if scheme else at)
        return rest.span() if rest else None
    if head["sep"] == "=" and _CODE.match(text, at) and _in_source(before):
        return None
    start = before.rpartition("\n")[2]
    if name.startswith(_SHORT) and _is_prose(text, head, start):
        return None
    # from here on something is masked, so nothing is looked at twice
    if head["close"]:
        return at, _bare(text, at, start)
    spaced = text[at - 1] in " \t" or name.rstrip()[-1:] == ":"
    setting = (head["sep"] == ":" and spaced) or (head["sep"] == "=" and (start + head[0]).isupper())
    if setting and _LINE_START.match(start) and (line := _REST.match(text, at)) and ";" not in line[0]:
        return at, at + len(line[0].rstrip())
    return at, _bare(text, at, start)


def _says_nothing(text: str, head: re.Match[str], before: str) -> bool:
    """True for text that only looks like a secret: an empty value, prose, a place, a statement about a
    file.
    """
    at, sep = head.end(), head["sep"]
    first, second = text[at : at + 1], text[at + 1 : at + 2]
    if not first or first in _BARE_END:
        return True
    if _EMPTY.match(text, at) and not (second.isalnum() and (first == "." or (first == "(" and sep == "="))):
        return True
    if sep == ":":
        _, slash, rest = before.rpartition("/")
        if _PROSE.match(text, at) or (slash and _FILE.fullmatch(rest)):
            return True
    if head[0].lower().startswith(("pwd", "pw")) and first == "/":
        return True  # the shell's working folder
    return bool((head["many"] and _COUNT.match(text, at)) or _PLACE.match(text, at))


def _is_prose(text: str, head: re.Match[str], start: str) -> bool:
    """True for "in the second pass: 3 errors", "PASS: parser", "pass=12", "auth: user bob logged in"."""
    name, at = head[0], head.end()
    alone = not start[-1:].isalnum() and start[-1:] not in ("_", "-")
    if (
        alone
        and name[:4].lower() == "pass"
        and (_FEW.match(text, at) or (head["sep"] == ":" and name.startswith("PASS")))
    ):
        return True
    if head["sep"] != ":":
        return False
    if alone and name[:4].lower() == "auth" and _LOGGED.match(text, at):
        return True
    return not (_LINE_START.match(start) or _LOGIN.search(start))


def _bare(text: str, at: int, start: str) -> int:
    """Where a value without quotes ends. A quote inside it belongs to it, unless it closes one that was
    opened before.
    """
    word = _BARE.match(text, at)
    end = word.end() if word else at
    quote = text[end : end + 1]
    if (
        quote
        and quote in "\"'`"
        and start.count(quote) % 2 == 0
        and text[end + 1 : end + 2].isalnum()
        and (whole := _WHOLE_WORD.match(text, at))
    ):
        end = whole.end()
    return at + len(text[at:end].rstrip(")]},.>"))


def _quoted(text: str, opened: re.Match[str], wide: bool) -> tuple[int, int] | None:
    quoting, at = opened["quote"], opened.end()
    if len(quoting) == 1 and text.startswith(quoting * 2, at):
        at += 2
        end = text.find(quoting * 3, at)
        end = len(text) if end < 0 else end
    elif len(quoting) == 1:
        inside = _INSIDE[quoting].match(text, at)
        end = inside.end() if inside else at
    else:  # quotes within quotes: JSON in JSON, or a repr of a repr
        near = text[at : at + 4096].partition("\n")[0]
        size = near.find(quoting)
        rest = _REST.match(text, at) if size < 0 else None
        end = rest.end() if rest else at + size
    value = text[at:end]
    if value.strip("*") == "" or _EMPTY.fullmatch(value) or _PLACE.fullmatch(value):
        return None
    if wide and (scheme := _SCHEME.match(text, at)) and scheme.end() < end:
        at = scheme.end()
    return at, end


def _in_source(before: str) -> bool:
    """True after the start of a source line in a traceback."""
    *_, above, line = ["", *before.split("\n")]
    return above.lstrip("→ ").startswith('File "') and line[:1] in (" ", "→", "+")


# -- expressions ---------------------------------------------------------------------------------------------

_expressions: dict[tuple[str, int], re.Pattern[str]] = {}


def _expression(pattern: str, flags: int) -> re.Pattern[str]:
    """Compiled on first use: most texts contain no hint of most kinds."""
    found = _expressions.get((pattern, flags))
    if found is None:
        found = _expressions[pattern, flags] = re.compile(pattern, flags)
    return found


def _sub(pattern: str, put: str | Put = MASK, flags: int = 0) -> Callable[[str], str]:
    return lambda text: _expression(pattern, flags).sub(put, text)


def _behind(pattern: str, flags: int = 0) -> Callable[[str], str]:
    """Mask what the last group of the expression matches; the rest stays."""

    def put(match: re.Match[str]) -> str:
        start, end = match.span(match.re.groups)
        return match.string[match.start() : start] + MASK + match.string[end : match.end()]

    return _sub(pattern, put, flags)


def _prefixed(name: str, prefix: str, least: int, example: str, chars: str = r"A-Za-z0-9_-") -> Kind:
    """A token whose first letters reveal what it is."""
    hint = re.split(r"[(\[\\]", prefix)[0].lower()
    return Kind(
        name, (hint,), _sub(rf"(?<![\w-]){prefix}[{chars}]{{{least},}}+"), (f"seen «{example}» in a log",)
    )


#: A word of a shell; the last group is its value.
_WORD = r"(?:[\"'](?![\"']))?((?<=')[^'\n]{1,400}+|(?<=\")[^\"\n]{1,400}+|[^\s\"'-][^\s\"']*+)"
_A40 = "aB3dE6gH1jK2mN4pQ5rS7tU8vW9xY0zA1bC2dE3f"

KINDS: tuple[Kind, ...] = (
    Kind(
        "url password",
        ("://",),
        _behind(
            r"(?<!s3)://[^\s:/@'\"<>\[]{0,200}:(?!\d{1,5}(?:[/?#\s]|\Z))((?:[^\s/'\"<>]{1,256}"
            r"|[^\s'\"<>]{1,256}))(?=@)"
        ),
        (
            "postgres://app:«hunter2»@db/x",
            "mysql://root:«p@ss@word»@db.example:3306/shop",
            "redis://:«s3cr3t»@cache:6379/0",
            "amqp://u:«a/b»@mq/",
            "smtps://me:«x»@isp.example:465",
            "mongodb+srv://u:«p%40q»@cluster.example/?w=1",
        ),
    ),
    Kind(
        "url token",
        ("://",),
        _behind(r"://(?=[A-Za-z_-]{0,200}(?:\d|[a-z][A-Z]))([A-Za-z0-9_-]{20,200})(?=@)"),
        (f"https://«{_A40}»@git.example/x.git",),
    ),
    Kind(
        "url query",
        ("sig", "key=", "code="),
        _behind(
            r"[?&](?i:key|sig|signature|x-amz-signature|x-goog-signature|code(?!=\d{1,3}(?:[&\s\"'<>#]|\Z)))="
            r"([^&\s\"'<>#]++)"
        ),
        (
            "https://blob.example/a?sv=2020&sig=«aB%2Bc%3D»&se=1",
            "https://maps.example/api?key=«AbC123def»&q=1",
            "https://s3.example/o?X-Amz-Signature=«9f86d081884c7d65»",
            "GET /cb?code=«4/0AX4XfWh»&state=1",
        ),
    ),
    Kind(
        "private key",
        ("-----begin", "-----end"),
        _sub(
            r"(-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,20}-----)[^-]*+(?:-(?!----)[^-]*+)*|^"
            r"(?:[A-Za-z0-9+/=\\n]{16,}+\n)++(-----END [A-Z0-9 ]{0,40}PRIVATE KEY)?",
            lambda m: m[1] + MASK if m[1] else MASK + m[2] if m[2] else m[0],
            re.M,
        ),
        (
            "-----BEGIN PRIVATE KEY-----«\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nBKcwggSjAgEAAoIBAQC7\n»-----END "
            "PRIVATE KEY-----",
            "-----BEGIN OPENSSH PRIVATE KEY-----«\nb3BlbnNzaC1rZXktdjEAAAAA\n»-----END OPENSSH PRIVATE "
            "KEY-----",
            "-----BEGIN RSA PRIVATE KEY-----«\nProc-Type: 4,ENCRYPTED\n\nMIIEpAIBAAKCAQEA\n»",
            "-----BEGIN PGP PRIVATE KEY BLOCK-----«\n\nlQdGBGJ\n»-----END PGP PRIVATE KEY BLOCK-----",
            "«MIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n»-----END EC PRIVATE KEY-----",
        ),
    ),
    Kind(
        "jwt",
        ("eyj",),
        _sub(r"(?<![\w-])eyJ[\w-]{6,}+\.[\w-]{6,}+(?:\.[\w-]*+){0,3}"),
        ("got «eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U» back",),
    ),
    Kind(
        "sasl",
        ("auth ",),
        _behind(
            r"\b(?i:AUTH (?:PLAIN|LOGIN|CRAM-MD5|XOAUTH2|OAUTHBEARER|NTLM|SCRAM-SHA-\d{1,3}(?:-PLUS)?)) "
            r"(?![a-z]{1,20}\b|[A-Z-]{4,12}(?: [A-Z]|$))((?:[A-Za-z0-9+/]{4}){1,2000}+={0,2}|"
            r"(?:[A-Za-z0-9+/]{4}){0,2000}[A-Za-z0-9+/]{2,3}={1,2})(?![\w=-])",
            re.M,
        ),
        ("C: AUTH PLAIN «AG1lAHNlY3JldA==»", "send: 'AUTH LOGIN «bWU=»\\r\\n'", "AUTH XOAUTH2 «dXNlcj1h»"),
    ),
    Kind(
        "bearer",
        ("bearer ", "basic ", "apikey "),
        _behind(
            r"\b(?:(?i:Bearer)|Basic|ApiKey) (?=[A-Za-z._~+/-]{0,2000}(?:[0-9=]|[a-z][A-Z]))"
            r"([A-Za-z0-9._~+/-]{8,}+={0,2})(?!\w)"
        ),
        ("sent Bearer «mF_9.B5f-4.1JqM»", "with Basic «dXNlcjpwYXNz»", "then ApiKey «0123456789abcdef»"),
    ),
    Kind(
        "command flag",
        ("-",),
        _behind(
            r"(?<![\w-])--?(?:[A-Za-z0-9]{1,20}-){0,4}(?i:password|passwd|passphrase|secret|token|api-?key"
            r"|access-?key|secret-?key|private-?key|pass|pwd)(?:-(?:value|text|key))?[ \t]{1,8}"
            r"(?!-|(?:to|is|or|and|for|in|if|was|with|from|the|a|an|option|flag|must|needs?|on)\b|<|\["
            r"|\$)[\"']?([^\s\"'\])]++)"
        ),
        (
            "tool --password «x» --host h",
            "deploy --api-key «k-123»",
            "ldapsearch -pass «geheim»",
            "kubectl --token «abc.def»",
            "x --client-secret '«q»'",
        ),
    ),
    Kind(
        "password flag",
        ("mysql", "mariadb"),
        _behind(
            r"\b(?:mysql\w{0,12}|mariadb[\w-]{0,12})\b(?:[ \t]+(?!-p)[^\s]{1,80}){0,12}?[ \t]+-p" + _WORD
        ),
        ("mysqldump -u root -p«geheim» shop", "mysql -u root -p'«s3cret»' x", 'mysql -uroot -p"«s3 cret»"'),
    ),
    Kind(
        "password argument",
        ("sshpass", "mongo", "plink"),
        _behind(r"\b(?:sshpass|mongo\w{0,8}|plink)\b(?:[ \t]+(?!-p)[^\s]{1,80}){0,12}?[ \t]+-p ?" + _WORD),
        ("sshpass -p «x1y2» ssh host", "mongosh -u a -p «b»", "sshpass -p '«x y»' ssh host"),
    ),
    Kind(
        "user flag",
        ("curl", "wget", "http"),
        _behind(
            r"\b(?:curl|wget|https?)\b(?:[ \t]+(?!-u)[^\s]{1,200}){0,12}?[ \t]+(?:-u"
            r"|--user) ?[\"']?[^\s:\"']{1,80}:([^\s\"']++)"
        ),
        ("curl -u me:«geheim» https://x.example", "curl -s --user bob:«p:q» x"),
    ),
    Kind(
        "redis flag",
        ("redis-cli",),
        _behind(r"\bredis-cli\b(?:[ \t]+(?!-a)[^\s]{1,80}){0,12}?[ \t]+-a[ \t]+([^\s]++)"),
        ("redis-cli -h c -a «pw1» ping",),
    ),
    Kind(
        "openssl pass",
        ("pass:",),
        _behind(r"(?<![\w])-?-?pass(?:in|out)?[ =]pass:([^\s\"']++)"),
        ("openssl rsa -passin pass:«geheim» -in k.pem",),
    ),
    Kind(
        "smbclient",
        ("%",),
        _behind(r"\bsmbclient\b[^\n]{0,200}?-U ?[\w.\\-]{1,60}%([^\s\"']++)"),
        ("smbclient //h/s -U bob%«geheim»",),
    ),
    Kind(
        "netrc",
        ("login ",),
        _behind(r"\blogin[ \t]{1,8}[^\s]{1,80}\s{1,8}password[ \t]{1,8}([^\s]++)"),
        ("machine h login bob password «geheim»",),
    ),
    Kind(
        "pgpass",
        (":",),
        _behind(r"^[\w.*/-]{1,100}:(?:\d{1,5}|\*):[\w*-]{1,64}:[\w*-]{1,64}:([^\s:]++)$", re.M),
        ("db.example:5432:*:app:«geheim»",),
    ),
    Kind(
        "imap login",
        (" login ",),
        _behind(
            r"(?:^|[>:'\"] ?)[A-Za-z]{0,4}\d{1,6} (?:LOGIN|login) \"?[^\s\"]{1,80}\"? \"?([^\s\"\\]++)", re.M
        ),
        ("C: a001 LOGIN bob «geheim»",),
    ),
    Kind(
        "pop3 pass",
        ("pass ",),
        _behind(r"^[ \t]{0,8}(?:C: ?|> ?|-+> ?|>>> ?|send: ?b?'?)PASS ([^\s'\\]++)", re.M),
        ("C: PASS «geheim»", "---> PASS «ftp-pw»"),
    ),
    Kind(
        "xml element",
        ("<",),
        _behind(
            r"<(?:[\w.-]{0,40}:)?(?:\w{0,40}?)(?i:password|passwd|passphrase|secret|token|api[_-]?key"
            r"|pwd)\w{0,20}(?:[ \t][^<>]{0,200})?>([^<>\n]{1,4096})(?=</)"
        ),
        (
            "<password>«geheim»</password>",
            '<wsse:Password Type="text">«x»</wsse:Password>',
            "<apiKey>«k1»</apiKey>",
        ),
    ),
    Kind(
        "html form",
        ("password",),
        _behind(
            r"name=[\"'](?i:password|passwd|csrf\w{0,20}token|token)[\"'][^<>\n]{0,100}?value=[\"']"
            r"([^\"'<>\n]++)"
        ),
        ('<input name="password" value="«geheim»">',),
    ),
    Kind(
        "crypt hash",
        ("$",),
        _sub(
            r"(?<![\w$])(?:\$(?:2[abxy]|[156y]|apr1|argon2(?:id?|d)|scrypt|7)\$|(?:pbkdf2_sha\d{1,3}"
            r"|bcrypt_sha256|argon2)\$)[\w./$=,+-]{12,}+"
        ),
        (
            "root:«$6$rounds=5000$saltsalt$abcdefghijklmnop»:19000",
            "«$2b$12$KIXQJ9b1nD3qfT0xw1rZ8u» stored",
            "«pbkdf2_sha256$600000$salt$0123456789ab=» in auth_user",
        ),
    ),
    Kind(
        "aws key id",
        ("akia", "asia", "abia", "acca"),
        _sub(r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b"),
        ("key «AKIAIOSFODNN7EXAMPLE» leaked", "«ASIAIOSFODNN7EXAMPLE»"),
    ),
    Kind(
        "github",
        ("gh",),
        _sub(r"(?<![A-Za-z0-9])gh[pousr]_[A-Za-z0-9]{30,}+"),
        (f"«ghp_{_A40}»", f"«gho_{_A40}»", f"«ghs_{_A40}»"),
    ),
    Kind(
        "slack",
        ("xox", "xapp-"),
        _sub(r"(?<![\w-])(?:xox[abeoprs]|xapp)-[A-Za-z0-9-]{10,}+"),
        ("slack «xoxb-1234567890-abcdefghij»", "«xapp-1-A012-345-abcdef»"),
    ),
    Kind(
        "webhook",
        ("hooks.slack.com", "discord", "webhook.office"),
        _behind(
            r"(?:hooks\.slack\.com/(?:services|workflows)/|discord(?:app)?\.com/api/webhooks/\d{5,25}/"
            r"|webhook\.office\.com/webhookb2/)([\w@/-]{8,}+)"
        ),
        (
            "https://hooks.slack.com/services/«T000/B000/XXXXXXXX»",
            "https://discord.com/api/webhooks/123456789/«AbCdEfGhIj»",
        ),
    ),
    Kind(
        "stripe",
        ("k_live_", "k_test_", "whsec_"),
        _sub(r"(?<![A-Za-z0-9])(?:[sr]k_(?:live|test)_|whsec_)[A-Za-z0-9+/=]{10,}+"),
        ("«sk_live_4eC39HqLyjWDarjtT1zdp7dc»", "«rk_test_4eC39HqLyjWDarjt»", "«whsec_abcdefghij0123456789»"),
    ),
    Kind(
        "telegram",
        (":aa",),
        _sub(r"(?<![\d:])\d{6,12}:AA[\w-]{30,40}(?![\w-])"),
        ("bot«123456789:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw-»/sendMessage",),
    ),
    Kind(
        "twilio",
        ("sk",),
        _sub(r"(?<![A-Za-z0-9])SK[0-9a-f]{32}(?![A-Za-z0-9])"),
        ("«SK0123456789abcdef0123456789abcdef»",),
    ),
    Kind(
        "mailchimp",
        ("-us",),
        _sub(r"(?<![\w-])[0-9a-f]{32}-us\d{1,2}(?!\w)"),
        ("«0123456789abcdef0123456789abcdef-us21»",),
    ),
    Kind(
        "mailgun",
        ("key-",),
        _sub(r"(?<![\w-])key-[0-9a-f]{32}(?!\w)"),
        ("«key-0123456789abcdef0123456789abcdef»",),
    ),
    Kind(
        "putty key",
        ("private-lines",),
        _behind(r"^Private-Lines: \d{1,4}\r?\n((?:[A-Za-z0-9+/=]{1,80}\r?\n?){1,400})", re.M),
        ("Private-Lines: 1\n«AAAAgQCabc==\n»",),
    ),
    _prefixed("github fine-grained", "github_pat_", 20, f"github_pat_{_A40}"),
    _prefixed("gitlab", "gl(?:pat|ptt|dt|rt|soat|cbt|ft|agent)-", 16, "glpat-0123456789abcdefghij", r"\w.-"),
    _prefixed("google api", "AIza", 30, "AIzaSyA0123456789abcdefghijklmnopqrstuv"),
    _prefixed("google oauth", "ya29\\.", 20, "ya29.a0AfH6SMBx0123456789abcdef", r"\w.-"),
    _prefixed("google client secret", "GOCSPX-", 20, "GOCSPX-0123456789abcdefghijklmnop"),
    _prefixed("npm", "npm_", 30, f"npm_{_A40}"),
    _prefixed("pypi", "pypi-", 30, "pypi-AgEIcHlwaS5vcmcCJGY0ZjQ0ZjQ0LWFiY2QtZWY"),
    _prefixed("sendgrid", "SG\\.", 30, "SG.abcdefghijklmnopqrstuv.0123456789abcdefghijk", r"\w.-"),
    _prefixed("digitalocean", "do[opr]_v1_", 30, f"dop_v1_{_A40}"),
    _prefixed("huggingface", "hf_", 30, f"hf_{_A40}"),
    _prefixed("sk key", "sk-", 20, f"sk-proj-{_A40}"),
    _prefixed("shopify", "shp(?:at|ca|pa|ss)_", 20, "shpat_0123456789abcdef0123456789abcdef"),
    _prefixed("square", "sq0(?:atp|csp)-", 20, "sq0atp-0123456789abcdefghijkl"),
    _prefixed("databricks", "dapi", 32, "dapi0123456789abcdef0123456789abcdef", "0-9a-f"),
    _prefixed("vault", "hv[sbr]\\.", 20, "hvs.CAESIJ0123456789abcdefghij", r"\w.-"),
    _prefixed("doppler", "dp\\.(?:pt|st|ct|sa)\\.", 20, f"dp.pt.{_A40}", r"\w.-"),
    _prefixed("age", "AGE-SECRET-KEY-1", 30, "AGE-SECRET-KEY-1QYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQYQSZ"),
    _prefixed("grafana", "gl(?:sa|c)_", 30, f"glsa_{_A40}"),
    _prefixed("new relic", "NRAK-", 20, "NRAK-0123456789ABCDEFGHIJKLMNOPQ"),
    _prefixed("postman", "PMAK-", 20, "PMAK-0123456789abcdef01234567-0123456789"),
    _prefixed("pulumi", "pul-", 32, "pul-0123456789abcdef0123456789abcdef01234567", "0-9a-f"),
    _prefixed("rubygems", "rubygems_", 30, "rubygems_0123456789abcdef0123456789abcdef"),
    _prefixed("docker", "dckr_pat_", 20, "dckr_pat_0123456789abcdefghijklm"),
    _prefixed("atlassian", "ATATT", 30, f"ATATT3x{_A40}", r"\w=-"),
    _prefixed("supabase", "sbp_", 30, "sbp_0123456789abcdef0123456789abcdef01234567"),
    _prefixed("planetscale", "pscale_(?:tkn|pw|oauth)_", 20, f"pscale_tkn_{_A40}", r"\w.-"),
    _prefixed("figma", "figd_", 20, f"figd_{_A40}"),
    _prefixed("linear", "lin_api_", 20, f"lin_api_{_A40}"),
    _prefixed("sentry", "sntr[yu]s?_", 30, f"sntrys_{_A40}", r"\w=+/-"),
    _prefixed("facebook", "EAA", 60, f"EAACEdEose0cBA{_A40}{_A40}", "A-Za-z0-9"),
    _prefixed("brevo", "xkeysib-", 30, f"xkeysib-{_A40}"),
    _prefixed("twitter bearer", "AAAAAAAAAAAAAAAAAAAAA", 30, f"AAAAAAAAAAAAAAAAAAAAAM{_A40}", "A-Za-z0-9%"),
    Kind(
        "named value",
        ("pass", "pwd", "pw", "secret", "token", "key", "credential", "auth", "cookie", "session"),
        _assignments,
        (
            "password: «x»",
            "password=«hunter2»",
            'Password = "«hunter2»"',
            "password=b'«hunter2»'",
            "{'password': '«hunter2»', 'user': 'bob'}",
            '{"password": "«hunter2»", "n": 1}',
            '{\\"password\\": \\"«hunter2»\\"}',
            "db_password: «correct horse battery»",
            "  - smtp_password: '«x y»'",
            "password: |\n  «line one»\nuser: bob",
            "DB_PASSWORD=«a,b c»",
            "export API_TOKEN=«abc»",
            "run PGPASSWORD=«geheim» psql",
            "MYSQL_PWD=«geheim»",
            "Server=h;Uid=u;PWD=«geheim»;Encrypt=1",
            "Data Source=h;Password=«p,w»;",
            "dsn: host=h user=u password=«geheim» port=1",
            "X-Api-Key: «abc 123»",
            "x-auth-token: «abc»",
            "'X-Api-Key': '«abc»'",
            "Authorization: ApiKey «abcdef»",
            "Authorization: Bearer «a.b.c»",
            "Authorization: Basic «dXNlcjpw»",
            "Authorization: Digest «username=bob, response=6629fae4»",
            "Authorization: «tok123»",
            "Proxy-Authorization: Basic «dXNlcjpw»",
            "{'Authorization': 'Bearer «abc»'}",
            "(b'authorization', b'Token «abc»')",
            'curl -H "Authorization: token «abc»" https://x',
            "Cookie: «session=abc; theme=dark»",
            "Set-Cookie: «sid=abc; Path=/»",
            "client_secret=«abc»&grant_type=x",
            "https://h/p?access_token=«abc»&x=1",
            "?api_key=«abc»",
            "secretKey: «abc»",
            "AccountKey=«abc==»;EndpointSuffix=x",
            "SharedAccessKey=«abc=»",
            "aws_secret_access_key = «wJalr/K7»",
            "private_key = «0123»",
            "PrivateKey = «yAnz5TF+lXXJte14tjiZ»",
            "passphrase: «abc def»",
            "passwd=«abc»",
            "pwd=«abc»",
            "pass=«abc»",
            "passcode: «1234»",
            "Passwort: «geheim»",
            "credentials='«u:p»'",
            "login(user='bob', password='«it\\'s»')",
            "login(user=bob, token=«abc»)",
            "Config(password=«hunter2», host='h')",
            "os.environ['SECRET_KEY'] = '«abc»'",
            'config["token"]="«abc»"',
            'secret := "«abc»"',
            ':password => "«abc»"',
            "[('password', '«abc»')]",
            "['--password', '«abc»']",
            "--password=«abc»",
            "--db-password=«abc»",
            "auth=«abc»",
            "auth: «abc»",
            "sessionid=«abc»",
            "session_id: «abc»",
            "password: str = '«abc»'",
            "encryption_key: «abc»",
            "signing-key: «abc»",
            "//registry.npmjs.org/:_authToken=«abc»",
            "login failed user=bob password: «swordfish» host=h",
            "access_key: «abc»",
            "dbPwd=«abc»",
            '<add key="x" password="«abc»"/>',
            "password2=«abc»",
            "jwt_secret='«abc»'",
            "Your password: «Ab1!x»",
            "password=«(hunter2»)",
            "password=«.hunter2»",
            "user=bob pass: «hunter2»",
            'password = [«"a","b"»]',
            'password="""«multi\nline»"""',
            "password: '«it''s-s3cret»'",
            'connecting, password=«ab"cdef» host=x',
            'say "password=«ab»" x',
            "DB_PASS: «geheim»",
            "pass: «abc»",
        ),
    ),
)

#: Ordinary texts, which must come back unchanged.
NOT_SECRET: tuple[str, ...] = (
    "the password: was changed",
    "Password was changed for bob",
    "a token bucket with 5 tokens",
    "the secretary: Ms Bell",
    "secretary=Bob",
    "commit 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b",
    "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
    "Message-ID: <20261124.abc-def.12345@mail.example.org>",
    "/etc/outmail/password_file",
    "password_file = /etc/outmail/pw",
    'File "/srv/app/auth.py", line 12, in login',
    "ValueError: invalid token: expected ')' at 3",
    'Traceback (most recent call last):\n  File "/srv/a.py", line 3, in f\n    token = '
    "self._next_token()\nKeyError: 4",
    '  File "a.py", line 3, in f\n    connect(user, password=password)\n',
    "https://example.org:8443/users/@bob",
    "http://example.org:80/x?email=b@c.example",
    "https://example.org/a/b?page=2&sort=key",
    "author: Bob",
    "authors = 3",
    "authentication: none",
    "first pass: 3 errors, second pass: 0",
    "compass: north",
    "bypass=1",
    "PWD=/home/bob",
    "OLDPWD=/srv/app",
    "total_tokens=512",
    "tokens: 1,024",
    "max_tokens=4096",
    "password=None",
    "password=''",
    "password: ****",
    "password=%s",
    "password=${DB_PASSWORD}",
    "token_type: bearer",
    "the bearer of this letter",
    "basic training",
    "use --password to set it",
    "tar -p x",
    "mkdir -p /srv/app",
    "ssh -p 22 host",
    "docker run -p 8080:80 nginx",
    "cp -p a b",
    "key: value",
    "monkey=3",
    "primary_key=id",
    "key=crawl",
    "passed: 12, failed: 0",
    "passenger: 3",
    "cookies: 3 set",
    "token expired",
    "secret sauce",
    "535 5.7.8 Error: authentication failed: UGFzc3dvcmQ6",
    "AUTH PLAIN LOGIN",
    "250-AUTH PLAIN LOGIN CRAM-MD5",
    "status=deferred id=01J/1 to=a@b.c code=451",
    "2026-11-24 17:20:58,123 INFO app: started",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "From: Alice <alice@example.org>",
    "the API key is missing",
    "session ended",
    "rsync -avz --delete src/ dst/",
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    "expected token: ')'",
    "unexpected token: }",
    "a password must have 8 letters",
    "password: required",
    "passwords do not match",
    "price: $6.50 or $1.00",
    "sk-nn",
    "SK is a country code",
    "ghp_short",
    'eyJ is base64 of {"',
    "12:34:56",
    "secret_name: prod/db",
    "cat: /etc/passwd: Permission denied",
    "PASS: parser",
    "PASS: tests/parser-test.sh\nFAIL: x\n# PASS:  12",
    "# PASS:  12",
    "PASS : 3",
    "pass=12 fail=3",
    "https://[2001:db8::1]:8443/users/@bob",
    "https://[::1]:8080/a@b",
    "s3://bucket:eu/file@v2",
    "Basic functionality test passed",
    "Basic authentication is required",
    "Bearer authentication is on",
    "postgresql://my_application_readonly_user@db/x",
    "https://x.example/error?code=404",
    "SSH_AUTH_SOCK=/run/user/1000/keyring/ssh",
    "private_key=/etc/ssl/private/site.key",
    "private_key = '/etc/ssl/private/site.key'",
    "secret: /run/secrets/db",
    "token: /srv/app/token.txt was read",
    "token_endpoint=https://idp.example/token",
    "authorization_endpoint: https://idp.example/authorize",
    "auth_method=ldap",
    "password_reset: sent to 3 users",
    "stat /srv/cookie: input/output error",
    "grep: /etc/passwd:12:bob",
    "auth: user bob logged in",
    "mysql -p shop < /srv/dump.sql",
    "/srv/app/api-key: Permission denied",
    'failed to open "/srv/secret": Permission denied (13)',
    "src/auth:12: error",
)


def examples() -> Iterator[tuple[str, str, str]]:
    """(kind, text, what it must become), for the tests."""
    for kind in KINDS:
        for marked in kind.examples:
            parts = re.split("[«»]", marked)
            yield kind.name, "".join(parts), "".join(MASK if i % 2 else part for i, part in enumerate(parts))
