"""300 labelled strings for measuring detectors of secrets: 170 hold one, 130 hold none.

Every key is made from a seeded random source with the alphabet and length its service publishes; none was ever issued.
Prefixes are put together at run time, so that scanners of hosted repositories find nothing in this file. Mail
addresses use reserved or made-up domains, card and bank numbers are random with valid check digits.
"""

from __future__ import annotations

import base64
import hashlib
import json
import string
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

OPTIONAL = "optional:"
"""Prefix of kinds a project may leave alone: phone numbers and bank accounts."""
MARK = "{}"
"""Where a template takes the secret."""
LOWER, UPPER, DIGITS = string.ascii_lowercase, string.ascii_uppercase, string.digits
LETTERS = LOWER + UPPER
ALNUM = LETTERS + DIGITS
HEX = DIGITS + "abcdef"
BASE64 = ALNUM + "+/"
URLSAFE = ALNUM + "_-"
BASE32 = UPPER + "234567"
SYMBOLS = "!#%&*+-_.?~^"


@dataclass(frozen=True)
class Sample:
    """One string with its label."""

    text: str
    secret: str | None
    """The part that must vanish; None where nothing may change."""
    kind: str


Make = Callable[[Random, int], tuple[str, str]]
"""From the random source and the place within the kind: what a template shows, and the secret in it."""


def samples(seed: int = 0) -> list[Sample]:
    """The labelled strings; other seeds give other keys in the same places."""
    random = Random(seed)
    found = []
    for kind, count, make, templates in _positives():
        for place in range(count):
            shown, secret = make(random, place)
            found.append(Sample(templates[place % len(templates)].replace(MARK, shown), secret, kind))
    return found + [Sample(text, None, kind) for kind, texts in _negatives(random).items() for text in texts]


def _draw(random: Random, alphabet: str, length: int) -> str:
    return "".join(random.choice(alphabet) for _ in range(length))


def _key(prefix: tuple[str, ...], alphabet: str, length: int) -> Make:
    """Keys of one prefix, given in pieces, and one alphabet."""
    return _any(_drawn(alphabet, length, "".join(prefix)))


def _drawn(alphabet: str, length: int, prefix: str = "") -> Callable[[Random], str]:
    return lambda random: prefix + _draw(random, alphabet, length)


def _any(*makers: Callable[[Random], str]) -> Make:
    """The makers in turn; the secret is all they return."""

    def make(random: Random, place: int) -> tuple[str, str]:
        secret = makers[place % len(makers)](random)
        return secret, secret

    return make


def _around(before: str, secret: Callable[[Random], str], after: str = "") -> Make:
    """A secret with something about it that may stay."""

    def make(random: Random, place: int) -> tuple[str, str]:
        value = secret(random)
        return before + value + after, value

    return make


def _luhn_digit(digits: str) -> str:
    """The digit that makes the number valid (ISO/IEC 7812)."""
    backwards = [int(digit) for digit in reversed(digits)]
    doubled = [2 * backward - 9 * (backward > 4) for backward in backwards[::2]]
    return str(-(sum(doubled) + sum(backwards[1::2])) % 10)


def _card_number(random: Random, start: str, length: int = 16) -> str:
    digits = start + _draw(random, DIGITS, length - len(start) - 1)
    return digits + _luhn_digit(digits)


def _card(random: Random, place: int) -> tuple[str, str]:
    """Cards of five issuers with the separators people and forms use."""
    gaps = ["", " ", "-", "\u00a0", ".", "\u2009", "\u202f", "\u3000", "\u2011", "", "", " "]
    starts = ["4", "51", "6011", "2221", "4", "55", "4", "4", "53", "34", "4", "37"]
    start = starts[place % len(starts)]
    amex = start in {"34", "37"}
    digits = _card_number(random, start, 15 if amex else 16)
    if place == 10:  # typed in a form that was set to full width
        digits = digits.translate({ord(digit): ord("\uff10") + int(digit) for digit in DIGITS})
    groups = [digits[:4], digits[4:10], digits[10:]] if amex else [digits[at : at + 4] for at in range(0, 16, 4)]
    shown = gaps[place % len(gaps)].join(groups)
    return shown, shown


def _bad_card(random: Random, gap: str) -> str:
    digits = _card_number(random, random.choice(["4", "52", "6011"]))
    digits = digits[:-1] + str((int(digits[-1]) + random.randrange(1, 10)) % 10)
    return gap.join(digits[at : at + 4] for at in range(0, 16, 4))


def _iban(random: Random, place: int) -> tuple[str, str]:
    """Accounts of ten countries with valid check digits (ISO 13616), every second one in groups of four."""
    shapes = ["DE18n", "GB4a14n", "FR23n", "NL4a10n", "ES20n", "CH17n", "AT16n", "BE12n", "SE20n", "NO11n"]
    shape = shapes[place % len(shapes)]
    body = _draw(random, UPPER, 4) if "a" in shape else ""
    body += _draw(random, DIGITS, int(shape.rsplit("a")[-1].lstrip(UPPER).rstrip("n")))
    number = "".join(str(int(one, 36)) for one in f"{body}{shape[:2]}00")
    iban = f"{shape[:2]}{98 - int(number) % 97:02d}{body}"
    shown = " ".join(iban[at : at + 4] for at in range(0, len(iban), 4)) if place % 2 else iban
    return shown, shown


def _phone(random: Random, place: int) -> tuple[str, str]:
    """Numbers as people of several countries write them; # is a digit."""
    shapes = [
        "+1 (415) 555-01##",
        "(212) 555-01##",
        "+44 20 7946 0###",
        "07700 900###",
        "+49 30 23125 ###",
        "030/23125###",
        "+33 1 99 00 ## ##",
        "06 39 98 ## ##",
        "+81-3-5555-01##",
        "+91 98765 #####",
        "415-555-01##",
        "+4915155501###",
    ]
    shown = "".join(random.choice(DIGITS) if one == "#" else one for one in shapes[place % len(shapes)])
    return shown, shown


def _jwt(random: Random) -> str:
    """A signed token with claims and a random signature."""
    header = {"alg": random.choice(["HS256", "RS256"]), "typ": "JWT"}
    claims = {"sub": _draw(random, DIGITS, 10), "iat": random.randrange(1_700_000_000, 1_800_000_000), "admin": True}
    parts = [base64.urlsafe_b64encode(json.dumps(one).encode()).decode().rstrip("=") for one in (header, claims)]
    return ".".join([*parts, _draw(random, URLSAFE, 43)])


def _pem(random: Random, place: int) -> tuple[str, str]:
    """The text within a private key's lines; where the key stands in JSON its line breaks are escaped."""
    starts = ["MII" + "EowIBAAKCAQEA", "b3BlbnNzaC1r" + "ZXktdjEAAAAA", "MHc" + "CAQEEI"]
    body = starts[place % 3] + _draw(random, BASE64, random.randrange(180, 700))
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    shown = ("\\n" if place == 3 else "\n").join(lines)
    return shown, shown


def _password(random: Random, symbols: str = SYMBOLS) -> str:
    """A generated password: letters of all sorts, at least a digit and a symbol."""
    letters = [*_draw(random, ALNUM, random.randrange(7, 13)), random.choice(DIGITS), random.choice(symbols)]
    random.shuffle(letters)
    return random.choice(LETTERS) + "".join(letters)


def _chosen(random: Random) -> str:
    """A password a person makes up."""
    word = random.choice(["Sunshine", "dragonfly", "Bluebird", "monkeys", "Arsenal", "letmein", "Winter"])
    return word + str(random.randrange(7, 2030)) + random.choice(["", "!", "!!", "$"])


def _spaced(random: Random) -> str:
    words = ["correct", "horse", "battery", "staple", "violin", "harbour", "lantern", "pebble", "orbit", "cactus"]
    return " ".join(random.sample(words, 4))


def _openai_project(random: Random) -> str:
    return "-".join(["sk", "proj", ""]) + _draw(random, URLSAFE, 74) + "T3Blbk" + "FJ" + _draw(random, URLSAFE, 74)


def _openai_old(random: Random) -> str:
    return "sk" + "-" + _draw(random, ALNUM, 20) + "T3Blbk" + "FJ" + _draw(random, ALNUM, 20)


def _openai_service(random: Random) -> str:
    return "-".join(["sk", "svcacct", ""]) + _draw(random, URLSAFE, 58) + "T3Blbk" + "FJ" + _draw(random, URLSAFE, 58)


def _slack(letter: str) -> Callable[[Random], str]:
    def make(random: Random) -> str:
        numbers = [_draw(random, DIGITS[1:], 12) for _ in range(3 if letter == "p" else 2)]
        last = _draw(random, HEX, 32) if letter == "p" else _draw(random, ALNUM, 24)
        return "-".join(["xo" + "x" + letter, *numbers, last])

    return make


def _slack_app(random: Random) -> str:
    parts = ["xa" + "pp", "1", "A" + _draw(random, UPPER + DIGITS, 10), _draw(random, DIGITS[1:], 13)]
    return "-".join([*parts, _draw(random, HEX, 64)])


def _slack_rotated(random: Random) -> str:
    return "xo" + "xe.xo" + "xp-1-" + _draw(random, ALNUM, 163)


def _webhook(random: Random, place: int) -> tuple[str, str]:
    parts = ["T" + _draw(random, UPPER + DIGITS, 10), "B" + _draw(random, UPPER + DIGITS, 10)]
    last = _draw(random, ALNUM, 24)
    return "/".join(["https://hooks.slack" + ".com", "services", *parts, last]), last


def _mail(random: Random, place: int) -> tuple[str, str]:
    shown = [
        "mara.lind+agents@post.example.org",
        "o'connor@example.ie",
        "J.Smith@sub.domain.example.co.uk",
        "jörg.müller@bücher.example",
        "почта@пример.рф",
        "用户@例子.公司",
        "संपर्क@उदाहरण.भारत",
        "info@xn--bcher-kva.example",
        "first_last-99@mail-eu.example.museum",
        "josé@correo.example.es",
        "x@example.io",
    ][place]
    return shown, shown


def _positives() -> list[tuple[str, int, Make, tuple[str, ...]]]:
    """Kind, how many, how to make one, and the texts to put them in, taken in turn."""
    access = _any(
        lambda random: "AK" + "IA" + _draw(random, BASE32, 16), lambda random: "AS" + "IA" + _draw(random, BASE32, 16)
    )
    github = _any(*[_drawn(ALNUM, 36, "gh" + one + "_") for one in "pos"])
    fine = _any(lambda random: "github" + "_pat_" + _draw(random, ALNUM, 22) + "_" + _draw(random, ALNUM, 59))
    gitlab = _any(
        lambda random: "gl" + "pat-" + _draw(random, URLSAFE, 20),
        lambda random: "gl" + "pat-" + _draw(random, URLSAFE, 30) + ".01" + _draw(random, LOWER + DIGITS, 7),
    )
    twilio = _any(lambda random: "S" + "K" + _draw(random, HEX, 32), _drawn(HEX, 32))
    begin, end = "-----BEG" + "IN ", " PRIVATE KE" + "Y-----"
    shut = "-----E" + "ND "
    return [
        ("github token", 6, github, (
            "git clone https://{}@github.com/acme/site.git",
            "export GITHUB_TOKEN={}",
            "2026-03-02T10:11:12Z INFO using token {} for acme/site\n2026-03-02T10:11:13Z WARN token {} expires soon",
            '{"auth": {"token": "{}"}, "repo": "acme/site"}',
        )),
        ("github fine-grained token", 4, fine, (
            "Authorization: token {}",
            "my PAT is {}, can you test it?",
            "gh auth login --with-token <<< {}",
        )),
        ("gitlab token", 4, gitlab, (
            'curl --header "PRIVATE-TOKEN: {}" https://gitlab.example.com/api/v4/projects',
            "GITLAB_TOKEN='{}'",
        )),
        ("google api key", 4, _key(("AI", "za"), URLSAFE, 35), (
            "GET https://maps.googleapis.com/maps/api/geocode/json?address=Bonn&key={} 200",
            'const firebaseConfig = {apiKey: "{}", projectId: "soup"};',
            "GOOGLE_API_KEY={}\nGEMINI_API_KEY={}\n",
        )),
        ("npm token", 4, _key(("np", "m_"), ALNUM, 36), (
            "//registry.npmjs.org/:_authToken={}",
            "NPM_TOKEN={} npm publish",
            "npm ERR! 403 with token {}",
        )),
        ("pypi token", 4, _key(("py", "pi-AgEIcHlwaS5vcmc"), URLSAFE, 150), (
            "[pypi]\nusername = __token__\npassword = {}\n",
            "twine upload -u __token__ -p {} dist/*",
        )),
        ("digitalocean token", 3, _key(("do", "p_v1_"), HEX, 64), (
            "doctl auth init -t {}",
            'provider "digitalocean" {\n  token = "{}"\n}',
            "Here is the key for the droplet: {} (delete it later)",
        )),
        ("xai key", 3, _key(("xa", "i-"), ALNUM, 80), (
            "XAI_API_KEY={}",
            'client = OpenAI(base_url="https://api.x.ai/v1", api_key="{}")',
            "grok says 401: incorrect API key provided: {}",
        )),
        ("databricks token", 3, _key(("da", "pi"), HEX, 32), (
            "[DEFAULT]\nhost = https://adb-1.2.azuredatabricks.net\ntoken = {}\n",
            "databricks configure --token {}",
            '{"databricks_token":"{}"}',
        )),
        ("aws access key", 5, access, (
            "aws_access_key_id = {}",
            "botocore: Credentials found: {}",
            "https://b.s3.amazonaws.com/o?X-Amz-Credential={}%2F20260101%2Feu-central-1%2Fs3%2Faws4_request",
            '"AccessKeyId": "{}", "again": "{}"',
        )),
        ("aws secret key", 7, _any(lambda random: _draw(random, BASE64, 40)), (
            "[default]\nregion = eu-central-1\naws_secret_access_key={}\n",
            '{"accessKeyId": "see vault", "secretAccessKey": "{}"}',
            "export AWS_SECRET_ACCESS_KEY='{}'",
            "AWS Secret Access Key [None]: {}",
            'boto3.client("s3", aws_secret_access_key="{}", region_name="eu-west-1")',
            "spark.hadoop.fs.s3a.secret.key {}",
            "SecretAccessKey: {}\nSessionToken: none",
        )),
        ("slack token", 6, _any(
            _slack("b"), _slack("p"), _slack("a"), _slack_app, _slack_rotated, _slack("s")
        ), (
            "SLACK_BOT_TOKEN={}",
            "curl -F token={} https://slack.com/api/auth.test",
            'WebClient(token="{}")',
        )),
        ("slack webhook", 3, _webhook, (
            "curl -X POST -d '{\"text\": \"hi\"}' {}",
            '{"webhook_url": "{}"}',
            "notify={}",
        )),
        ("stripe key", 5, _any(
            *[_drawn(ALNUM, size, one + "k_" + "live_")
              for one, size in (("s", 24), ("r", 24), ("s", 99), ("r", 99), ("s", 24))]
        ), (
            "stripe.api_key = '{}'",
            "curl https://api.stripe.com/v1/charges -u {}:",
            "STRIPE_SECRET_KEY={} # rotate {}",
        )),
        ("hugging face token", 4, _key(("h", "f_"), LETTERS, 34), (
            "huggingface-cli login --token {}",
            'AutoModel.from_pretrained("acme/soup", token="{}")',
            "HF_TOKEN={}",
        )),
        ("openai key", 6, _any(
            _openai_project, _openai_old, _openai_service, _openai_project, _openai_old, _openai_project
        ), (
            "OPENAI_API_KEY={}",
            "openai.AuthenticationError: Incorrect API key provided: {}. You can find your key at the platform page.",
            '{"api_key":"{}","model":"gpt"}',
        )),
        ("anthropic key", 4, _any(lambda random: "sk-" + "ant-api" + "03-" + _draw(random, URLSAFE, 93) + "AA"), (
            "ANTHROPIC_API_KEY={}",
            "curl -H 'x-api-key: {}' https://api.anthropic.com/v1/messages",
            "user: my key is {}\nassistant: I should not repeat {} here",
        )),
        ("groq key", 3, _key(("gs", "k_"), ALNUM, 52), (
            "GROQ_API_KEY={}", "Groq(api_key='{}')", "keys:\n  groq: {}\n",
        )),
        ("json web token", 5, _any(_jwt), (
            "Cookie: session={}; theme=dark",
            '{"access_token": "{}", "expires_in": 3600}',
            "GET /feed?jwt={} HTTP/1.1",
            "Authorization: Bearer {}",
            "decoded {} ok",
        )),
        ("private key", 6, _pem, (
            begin + "RSA" + end + "\n{}\n" + shut + "RSA" + end,
            "cat ~/.ssh/id_ed25519\n" + begin + "OPENSSH" + end + "\n{}\n" + shut + "OPENSSH" + end + "\n$ exit",
            begin + "EC" + end + "\n{}\n" + shut + "EC" + end + "\n",
            '{"type": "service_account", "private_key": "' + begin[:-1] + end + "\\n{}\\n" + shut[:-1] + end + '\\n"}',
            "log cut here: " + begin + "OPENSSH" + end + "\n{}",
            "key:\n" + begin + "EC" + end + "\n{}\n" + shut + "EC" + end + "\nnext line",
        )),
        ("twilio key", 4, twilio, (
            "twilio api key sid {}",
            "TWILIO_AUTH_TOKEN={}",
            "Client(api_key='{}', region='ie1')",
            '{"twilioAuthToken": "{}"}',
        )),
        ("sendgrid key", 3, _any(
            lambda random: "S" + "G." + _draw(random, URLSAFE, 22) + "." + _draw(random, URLSAFE, 43)
        ), ("SENDGRID_API_KEY={}", "sg = SendGridAPIClient('{}')", "mail relay key: {}")),
        ("telegram token", 3, _any(
            lambda random: _draw(random, DIGITS[1:], 10) + ":AA" + _draw(random, URLSAFE, 33)
        ), (
            "https://api.telegram.org/bot{}/getMe", "TELEGRAM_TOKEN={}", "BotFather: use this token: {}",
        )),
        ("azure key", 3, _any(lambda random: _draw(random, BASE64, 86) + "=="), (
            "DefaultEndpointsProtocol=https;AccountName=soup;AccountKey={};EndpointSuffix=core.windows.net",
            "AZURE_STORAGE_CONNECTION_STRING='AccountName=a;AccountKey={}'",
            '{"conn": "AccountName=lake;AccountKey={}"}',
        )),
        ("bearer token", 4, _any(
            lambda random: _draw(random, URLSAFE, 40), lambda random: _draw(random, HEX, 64),
            lambda random: _draw(random, BASE64, 62) + "==", lambda random: _draw(random, ALNUM, 32),
        ), (
            "curl -H 'Authorization: Bearer {}' https://api.example.com/v1/orders",
            '{"headers": {"authorization": "bearer {}"}}',
            "> Authorization: Bearer {}\n> Accept: */*",
        )),
        ("basic auth", 7, _any(lambda random: _password(random, "!*+-_.~"), _drawn(HEX, 24), _chosen), (
            "git push https://mara:{}@git.example.com/acme/site.git",
            "DATABASE_URL=postgresql://app:{}@db.internal:5432/lake",
            "connecting to postgresql+psycopg://app:{}@10.0.0.7/lake?sslmode=require",
            "redis://:{}@cache:6379/0",
            '{"broker": "amqp://guest:{}@mq.example.net:5672//"}',
            "mongodb+srv://root:{}@cluster0.example.net/test and again mongodb+srv://root:{}@cluster0.example.net/prod",
            "pip install --index-url https://ci:{}@pypi.example.com/simple soup",
        )),
        ("password", 9, _any(
            _password, _chosen, _password, _chosen, _spaced, _password, _chosen, _password, _password
        ), (
            "host=db user=app password={} dbname=lake",
            '{"user": "mara", "password": "{}"}',
            "DB_PASSWORD={}\nDB_HOST=db\n",
            "login:\n  username: mara\n  password: {}\n",
            'conn = connect(host="db", password="{}")',
            "PGPASSWORD='{}' psql -h db -U app",
            '{"body": "{\\"user\\": \\"mara\\", \\"password\\": \\"{}\\"}"}',
            "mysqldump --user=root --password={} lake > lake.sql",
            "Server=db;Database=lake;User Id=app;Pwd={};Encrypt=true",
        )),
        ("gcp private key id", 3, _any(_drawn(HEX, 40)), (
            '{"type": "service_account", "project_id": "soup", "private_key_id": "{}", "client_id": "1"}',
            '  "private_key_id" : "{}",',
            "private_key_id={}",
        )),
        ("e-mail address", 11, _mail, (
            "From: Mara Lind <{}>",
            '{"customer": "{}", "plan": "free"}',
            "please write to {}.",
            "Rechnung an {}, danke!",
            "пишите на {} или звоните",
            "联系 {} 谢谢",
            "ईमेल: {}",
            "mailto:{}?subject=soup",
            "ERROR no mailbox for user={} (bounced: {})",
        )),
        ("card number", 12, _card, (
            "card={}&cvc=123",
            "My card is {}, valid until 04/29.",
            '{"pan": "{}"}',
            "Karte {} belastet",
            "payment {} declined, retry {}",
        )),
        (OPTIONAL + "phone number", 12, _phone, (
            "call me at {} after six", '{"phone": "{}"}', "Tel. {}", "Fax/phone: {}, ask for Mara",
        )),
        (OPTIONAL + "iban", 10, _iban, (
            "please transfer to {} by Friday", '{"iban":"{}"}', "IBAN: {}\nBIC: XXXXXXXX",
        )),
    ]  # fmt: skip


def _negatives(random: Random) -> dict[str, list[str]]:
    """Texts by kind that only look as if they held a secret."""

    def hexes(length: int) -> str:
        return _draw(random, HEX, length)

    def encoded(words: str) -> str:
        return base64.b64encode(words.encode()).decode()

    def identifier() -> str:
        return str(uuid.UUID(int=random.getrandbits(128), version=4))

    nano = [random.randrange(1_700_000_000_000_000_000, 1_800_000_000_000_000_000) for _ in range(6)]
    return {
        "git sha": [
            f"commit {hexes(40)}",
            f"Merge branch 'main' ({hexes(7)}..{hexes(7)})",
            f"fixed in https://github.com/acme/site/commit/{hexes(40)}",
            f"pip install git+https://github.com/acme/site@{hexes(40)}",
            f"HEAD is now at {hexes(9)} Read the config once",
            f"- uses: actions/checkout@{hexes(40)} # v4",
        ],
        "uuid": [
            f"run_id={identifier()}",
            f'{{"trace": "{identifier()}", "span": "{hexes(16)}"}}',
            f"DELETE /v1/orders/{identifier()} 204",
            identifier().upper(),
            f"Idempotency-Key: {identifier()}",
        ],
        "sha256": [
            f"{hashlib.sha256(b'soup').hexdigest()}  soup.tar.gz",
            f"--hash=sha256:{hexes(64)}",
            f'"integrity": "sha512-{encoded(_draw(random, ALNUM, 64))}"',
            f"etag: {hexes(32)}",
        ],
        "docker digest": [
            f"FROM python:3.12-slim@sha256:{hexes(64)}",
            f"ghcr.io/acme/site@sha256:{hexes(64)}: Pulled",
            f"Successfully built {hexes(12)}",
            f"sha256:{hexes(64)}",
        ],
        "base64": [
            encoded("take the red onion from the fridge and dice it"),
            f"data:text/plain;base64,{encoded('You are in the kitchen. A cookbook lies open.')}",
            f'{{"content": "{encoded("# Recipe: gather all following ingredients")}"}}',
            f"echo {encoded('hello world, hello soup')} | base64 -d",
            encoded("x" * 60),
            f"Content-MD5: {base64.b64encode(hashlib.md5(b'soup').digest()).decode()}",
        ],
        "order number": [
            f"order {_bad_card(random, '')} shipped",
            f"Your parcel {_bad_card(random, ' ')} is on its way",
            f"tracking {_bad_card(random, '-')}",
            f"ticket #{_draw(random, DIGITS[1:], 9)} and #{_draw(random, DIGITS[1:], 9)}",
            f'{{"order_id": {_bad_card(random, "")}}}',
            f"EAN 4006381{_draw(random, DIGITS, 6)}",
            f"serial {_bad_card(random, '.')}",
            "0000 0000 0000 0000",
        ],
        "float": [
            "loss=0.4111111111111111 step=1200",
            f"[{random.random()}, {random.random()}, {random.random()}]",
            f"reward {random.gauss(0, 1):.17f}",
            "pi is 3.14159265358979323846",
            "1.7976931348623157e+308",
            '{"logprob": -5.5000000000000004}',
        ],
        "timestamp": [
            f"ts={nano[0]} level=info msg=ready",
            f'{{"timeUnixNano": "{nano[1]}"}}',
            f"{nano[2] // 1_000_000} ms since the epoch",
            f"span {nano[3]}-{nano[4]}",
            "2026-11-24T03:04:05.123456789Z",
            f"modified {nano[5] // 1000}",
        ],
        "address or version": [
            "listening on 10.0.0.7:8080 and [2001:db8:85a3::8a2e:370:7334]:443",
            "192.168.178.21 - - [24/Nov/2026:03:04:05 +0000] \"GET / HTTP/1.1\" 200 612",
            "torch 2.9.1+cu128, python 3.12.7, driver 570.133.20",
            "npm install lodash@4.17.21 vue@3.5.13",
            "mac 00:1b:44:11:3a:b7",
        ],
        "sk- in words": [
            "pip install sk-learn # no: scikit-learn",
            "the sk-proj- prefix marks project keys; sk-ant- those of another company",
            "class='sk-fading-circle sk-circle-background-animation'",
            "task-specific-fine-tuning-of-language-models-for-cooking",
        ],
        "xai in words": [
            "xai explained: saliency maps, counterfactuals, SHAP",
            "import xai_tools as xai",
            "see docs/xai-explanations-of-tabular-models-overview.md",
        ],
        "path": [
            "/home/mara/projects/trajectory-flywheel/src/flywheel/datasets/privacy.py",
            "C:\\Users\\mara\\AppData\\Local\\Programs\\Python\\Python312\\python.exe",
            "s3://lake-bucket/trajectories/split=train/part-00000-of-00128.parquet",
            "node_modules/.pnpm/@babel+core@7.26.0/node_modules/@babel/core/lib/index.js",
            "static/img/logo@2x.png",
            "assets/hero@3x.webp 1200w",
        ],
        "source code": [
            "def token(self) -> str:\n    return self._tokens[self.position]",
            "for key in sorted(secrets):\n    print(key, len(secrets[key]))",
            "const token = await getToken(user.id, {scope: 'read'});",
            "token = tokenizer.convert_ids_to_tokens(ids)[0]",
            "secret_key = settings.SECRET_KEY",
            "aws_secret_access_key = os.environ['AWS_SECRET_ACCESS_KEY']",
            "assert response.headers['Authorization'].startswith('Bearer ')",
            "x = a @ b.T  # matrix product",
            "api_key: str | None = Field(default=None, repr=False)",
        ],
        "password without one": [
            'password = os.environ["DB_PASSWORD"]',
            "def login(user: str, password: str) -> None: ...",
            "Forgot your password? Enter your user name and we send a link.",
            '{"user": "mara", "password": null}',
            "connect(user=user, password=password)",
            "DATABASE_PASSWORD=${DATABASE_PASSWORD}",
            "if password == stored_password: return True",
            'password: "********"',
            "postgresql://<user>:<password>@<host>:5432/<name>",
            "mysql --user=root --password=<your-password>",
        ],
        "minified script": [
            '!function(e,t){"object"==typeof exports?module.exports=t():e.Soup=t()}(this,function(){return 1});',
            "var a=function(b){return b.c.d(e=>e.f?g(e.f):h),i?.j??k},l=a({m:1,n:'o'});",
            f"webpackJsonp([{random.randrange(10)}],{{'{hexes(8)}':function(n,r,t){{r.exports=t('{hexes(8)}')}}}});",
            f"main.{hexes(20)}.chunk.js",
        ],
        "aws in words": [
            "Access keys that start with AKIA are long-term, ASIA ones are temporary.",
            "grep -r AKIA . | wc -l",
            "ASIAN NOODLE SOUP RECIPE",
        ],
        "url": [
            "https://example.com/docs/getting-started?lang=en#install",
            "http://localhost:8080/@vite/client",
            "https://medium.example/@mara/how-i-cook-with-agents",
            "https://cdn.example.com/npm/vue@3/dist/vue.global.js",
            "ws://10.0.0.7:8000/v1/stream?session=abc",
            "https://example.com/a?next=https://example.org:8443/b",
            "https://hooks.slack.example/services/docs",
        ],
        "decorator": [
            "@decorator\ndef cook(): ...",
            '@app.get("/v1/models")',
            "@pytest.mark.parametrize('seed', [0, 1, 2])",
            "@property\ndef name(self) -> str:\n    return self._name",
            "@dataclass(frozen=True)\nclass Recipe:\n    steps: tuple[str, ...]",
            "    @property\n    def secret(self) -> Secret: ...",
        ],
        "prompt": [
            "mara@kitchen:~/soup$ make test",
            "root@a1b2c3d4e5f6:/app# ls",
            "scp mara@build-host:/tmp/log .",
            "git remote add origin git@github.com:acme/site.git",
            "ssh -p 2222 deploy@staging",
            "mara@localhost: Permission denied (publickey).",
        ],
        "cooking game": [
            "You are in the kitchen. You see a fridge, an oven, a cookbook and a red onion.",
            "take red onion from counter",
            "Recipe #1: 1 carrot, 2 blocks of cheese. Directions: chop the carrot, grill the cheese, prepare meal.",
            "You open the fridge, which holds a yellow bell pepper. Your score has just gone up by one point.",
            "go north; unlock pantry door with old key",
            "The secret ingredient is love. And cumin.",
            "inventory: knife, token of gratitude, key (brass)",
            "cook the potato with the oven until it is roasted",
            "Moves: 17/50, score: 3/4, seed: 1284739",
        ],
        "identifier": [
            "test_each_kind_of_secret_is_replaced_and_counted_when_it_is_read_again",
            "MAXIMUM_NUMBER_OF_TOKENS_PER_MICRO_BATCH = 16384",
            "flywheel_trajectory_collection_duration_seconds_bucket",
            "hf_transformers_model_with_tied_embeddings_is_saved_once",
            "npm_config_registry_for_internal_packages_of_the_team",
        ],
        "style sheet": [
            f".css-{hexes(6)}-MuiButtonBase-root{{color:#{hexes(6)}}}",
            f"<link href='/static/main.{hexes(20)}.css' integrity='sha384-{encoded(_draw(random, ALNUM, 48))}'>",
            f"._{_draw(random, ALNUM, 5)}_{_draw(random, ALNUM, 5)} {{ background: #{hexes(8)}; }}",
            "@media (min-width: 640px) { .sm\\:grid { display: grid } }",
        ],
        "phone- or account-like": [
            "2026-11-24 03:04:05 1284 5531 9917",
            "range 1000-2000, step 555-0",
            "ISBN 978-3-16-148410-0",
            "GB2026 release notes, DE10 model, NL01 sensor",
        ],
    }  # fmt: skip
