"""What a server is told when it is made: a frozen dataclass of options, read and checked here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from evenflow.access.client_headers import CLIENT_HEADERS
from evenflow.base.errors import ConfigError, InvalidRequest
from evenflow.serving.config.kinds import Choice, Count, Names, Number, PathTo, Size, Switch, Table, Text
from evenflow.serving.config.option import option, read_options
from evenflow.serving.core.sampling import MAX_LOGPROBS, SamplingParams
from evenflow.serving.server.http.known_fields import UNKNOWN_FIELDS
from evenflow.serving.text.reasoning import REASONING_PARSERS
from evenflow.serving.text.tools.families import TOOL_PARSERS

KIB = 1 << 10
MIB = 1 << 20
_HEADER = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Settings of one HTTP server. Raises ConfigError, naming the option, for a value outside its range."""

    served_model_names: tuple[str, ...] = option(
        Names(),
        ("base",),
        "Names of the base model in `model`; the first one is shown, the others are aliases. "
        'On the command line without it: "base" and the name of the folder.',
        name="served_model_name",
    )
    model_names: tuple[str, ...] = option(
        Names(),
        (),
        "What adapters may call the base model beside its served names, e.g. its folder; with none, what they say is not "
        "compared.",
        has_flag=False,
    )
    sampling_defaults: Mapping[str, float] = option(
        Table(),
        default_factory=dict,
        help="For requests that do not say: fields of SamplingParams. On the command line they come from --generation-config.",
        has_flag=False,
    )
    host: str = option(Text("a name or an address", "HOST"), "127.0.0.1", "Address to listen at.")
    port: int = option(Count(0, 65535), 8000, "Port to listen at; 0: any free one.")
    clients_file: Path | None = option(
        PathTo("FILE"),
        None,
        "clients.toml: keys, weights and limits of clients. Once it is named, every request needs a key, whatever it holds.",
        name="clients",
        when_none="everyone may enter and says who they are, unless --api-key is given",
    )
    api_keys: tuple[str, ...] = option(
        Names(),
        (),
        "Keys of the operator's own: with one, every request needs a key. Whoever holds one may change adapters, too.",
        name="api_key",
        reason="The command line shows up in the list of processes: VLLM_API_KEY in the environment does not.",
    )
    is_open: bool = option(
        Switch(),
        False,
        "Nobody needs a key, although a clients file or a key is given; everyone says who they are.",
        name="open",
        reason="A clients file without keys would lock everybody out, and must not let everybody in by mistake.",
    )
    client_headers: tuple[str, ...] = option(
        Names(),
        CLIENT_HEADERS,
        "Headers that name the client where no key does, the first one given wins.",
        name="client_header",
        reason="Gateways have their own, e.g. x-litellm-end-user-id, x-litellm-customer-id, x-user-id.",
    )
    prefix_sharing: str = option(
        Choice(("auto", "all", "clients")),
        "auto",
        "Who may find whose computed prefixes: all clients each other's, or clients only their own; auto: all on an open "
        "server, clients where keys are needed.",
        reason="The number of cached tokens tells one client what another has sent.",
    )
    allowed_origins: tuple[str, ...] = option(
        Names(), (), "Origins of web pages that may call this server (CORS), e.g. https://chat.example.com; *: all."
    )
    tool_call_parser: str = option(
        Choice(("auto", *TOOL_PARSERS)), "auto", "How the model writes tool calls; auto: as its chat template teaches."
    )
    reasoning_parser: str = option(
        Choice(("", *REASONING_PARSERS)), "", "How the model marks what it thinks before it answers; empty: it does not."
    )
    max_logprobs: int = option(
        Count(-1, MAX_LOGPROBS),
        20,
        "Log-probabilities that a request may ask for at one token, of the likeliest tokens; -1: of all tokens.",
        reason="Each of them is looked up, sent and written for every token of an answer.",
    )
    names_tokens_by_id: bool = option(
        Switch(),
        False,
        "Log-probabilities name tokens as token_id:7, unless a request says return_tokens_as_token_ids false.",
        name="return_tokens_as_token_ids",
        reason="Tokens that are no text of their own look alike as text.",
    )
    has_tokenizer_info: bool = option(
        Switch(),
        False,
        "Answer GET /tokenizer_info with the tokenizer's configuration and the chat template.",
        name="enable_tokenizer_info_endpoint",
        reason="A chat template may hold what an operator does not want to tell.",
    )
    unknown_fields: str = option(
        Choice(UNKNOWN_FIELDS),
        "refuse",
        "What to do with fields of a body that nobody here knows: refuse with 400, or ignore and name them in a header.",
        reason="They may be another server's way to ask for another answer.",
    )
    adapter_dir: Path | None = option(
        PathTo(), None, "Folder whose sub-folders are adapters, loaded when their name is first asked for.", when_none="none"
    )
    hub_cache: Path | None = option(
        PathTo(),
        None,
        "Cache folder of Hugging Face's hub client: adapters in it are served as org/name, or org/name@revision.",
        when_none="none",
    )
    adapter_resolver: str = option(
        Text("MODULE:CLASS", "MODULE:CLASS"),
        "",
        "Your own class that says where the adapter of a name lies: resolve(name), or vLLM's resolve_lora.",
    )
    adapter_text: str = option(
        Choice(("base", "own")),
        "base",
        "Chat template and added tokens of requests: the base model's, or an adapter's own where its folder has some.",
        reason="A template is code: it can take any time and memory of the server. Choose own for folders that you trust.",
    )
    adapter_downloads: Path | None = option(
        PathTo(),
        None,
        "Folder into which adapters of other storage (s3:// and the like) are copied.",
        when_none="a folder of your own in the system's folder for temporary files",
    )
    adapter_downloads_bytes: int = option(
        Size(),
        16 << 30,
        "That folder holds at most so much; what was used longest ago goes first.",
        name="adapter_downloads_size",
    )
    adapter_download_timeout_s: float = option(
        Number(above=0, unit="seconds", metavar="S"), 120.0, "For copying one adapter.", name="adapter_download_timeout"
    )
    max_queue: int = option(
        Count(1),
        4096,
        "Completions that may wait for their first token, of all clients together; beyond it 503.",
        aliases=("max_num_queued_reqs",),
    )
    max_body_bytes: int = option(
        Size(),
        32 * MIB,
        "A larger request body is refused before it is read to its end; a packed one counts as what it unpacks to.",
        name="max_body",
    )
    max_header_bytes: int = option(Size(), 64 * KIB, "Request line and headers of one request.", name="max_header_size")
    max_headers: int = option(Count(1), 128, "Header lines of one request.")
    max_connections: int = option(Count(1), 4096, "Open connections; more are answered 503 and closed.")
    header_timeout_s: float = option(
        Number(above=0, unit="seconds", metavar="S"),
        20.0,
        "From a connection's start, or a request's first byte, to the end of its headers.",
        name="header_timeout",
    )
    body_timeout_s: float = option(
        Number(above=0, unit="seconds", metavar="S"),
        60.0,
        "From the end of a request's headers to the end of its body.",
        name="body_timeout",
    )
    idle_timeout_s: float = option(
        Number(above=0, unit="seconds", metavar="S"),
        75.0,
        "A connection on which nothing is asked is closed after so long.",
        name="idle_timeout",
        reason="Longer than the usual minute of load balancers, so that they are the ones to close it.",
    )
    send_timeout_s: float = option(
        Number(above=0, unit="seconds", metavar="S"),
        60.0,
        "An answer of which nothing is read for so long is given up, and its connection closed.",
        name="send_timeout",
    )
    max_unread_bytes: int = option(
        Size(), 4 * MIB, "Of one stream that its client does not read; beyond it the stream is given up.", name="max_unread"
    )
    max_choices: int = option(Count(1), 1024, "Completions that one HTTP request may ask for: prompts times n.")
    drain_timeout_s: float = option(
        Number(least=0, unit="seconds", metavar="S"),
        30.0,
        "After SIGTERM, running requests get this long to finish.",
        name="drain_timeout",
        aliases=("shutdown_timeout",),
    )
    keepalive_s: float = option(
        Number(above=0, unit="seconds", metavar="S"),
        15.0,
        "A stream that has nothing to say for so long sends a comment.",
        name="keepalive",
        aliases=("sse_keep_alive_interval",),
        reason="Proxies cut connections that are silent for longer.",
    )
    metrics_top_k: int = option(
        Count(0),
        50,
        'Clients, and adapters, with series of their own in /metrics; the rest is summed as "other".',
        name="metrics_top",
    )
    otlp_endpoint: str = option(
        Text("an address like http://collector:4318", "URL"),
        "",
        "Send one trace for each request to the model to this collector, as OpenTelemetry over HTTP (OTLP).",
        aliases=("otlp_traces_endpoint",),
        reason="Needs evenflow[otel]. OTEL_EXPORTER_OTLP_ENDPOINT and the other variables of the SDK are respected.",
    )
    log_requests: bool = option(
        Switch(),
        False,
        "A line of the log for each HTTP request: who, what, which status, tokens and times. With --log-format json it is "
        "written unless --no-log-requests is given.",
    )
    records_texts: bool = option(
        Switch(),
        False,
        "What was asked and answered stands in traces, and in lines of requests as JSON.",
        name="record_texts",
        reason="Otherwise no prompt and no answer leaves the server but to its caller.",
    )
    accounts: str = option(
        Text("a file, or postgresql://...", "WHERE"),
        "",
        "Keep what every client used, by hour, adapter and outcome, in this file (SQLite) or database.",
        reason="Read by GET /v1/usage, /v1/admin/usage, the console and `evenflow usage`.",
    )
    accounts_days: int = option(Count(0), 0, "Hours of accounts older than so many days are forgotten; 0: never.")
    prices: Path | None = option(
        PathTo("FILE"),
        None,
        "TOML of prices for a million tokens, for the column cost of accounts.",
        when_none="no column cost",
    )
    uds: Path | None = option(
        PathTo("FILE"), None, "Unix socket to listen at, instead of host and port.", when_none="host and port"
    )
    root_path: str = option(
        Text("a path", "PATH"), "", "Path under which a proxy offers the server; requests may come with it or without it."
    )
    console: bool = option(
        Switch(), True, "The console: pages at /console/ that show the running server, to each key what it may see."
    )
    ssl_keyfile: Path | None = option(PathTo("FILE"), None, "Private key of the certificate, for HTTPS.", when_none="HTTP")
    ssl_certfile: Path | None = option(PathTo("FILE"), None, "Certificate of the server, for HTTPS.", when_none="HTTP")
    ssl_ca_certs: Path | None = option(
        PathTo("FILE"), None, "Certificates of the authorities that callers' certificates come from.", when_none="the system's"
    )
    ssl_cert_reqs: int = option(Count(0, 2), 0, "Callers' certificates: 0 none are asked for, 1 optional, 2 required.")
    ssl_ciphers: str = option(Text("OpenSSL's list of ciphers", "LIST"), "TLSv1", "Ciphers for HTTPS, in OpenSSL's words.")

    def __post_init__(self) -> None:
        read_options(self)

        def check(ok: bool, name: str, allowed: str) -> None:
            if not ok:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; allowed: {allowed}")

        object.__setattr__(self, "client_headers", tuple(header.lower() for header in self.client_headers))
        check(all(_HEADER.fullmatch(header) for header in self.client_headers), "client_headers", "names of headers")
        if not all(key.strip() and key.isprintable() for key in self.api_keys):
            raise ConfigError("api_key is empty or cannot be printed")  # and a key is never shown
        check(self.max_header_bytes >= KIB, "max_header_bytes", f"{KIB} or more")
        names = self.served_model_names
        check(bool(names) and all(names) and len(set(names)) == len(names), "served_model_names", "one or more different names")
        try:
            SamplingParams(**self.sampling_defaults)  # type: ignore[arg-type]
        except InvalidRequest as error:
            raise ConfigError(f"generation_config.json: {error}; or start with --generation-config none") from None
        check(self.adapter_dir is None or self.adapter_dir.is_dir(), "adapter_dir", "a folder that exists")
        for name in ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs"):
            file = getattr(self, name)
            check(file is None or file.is_file(), name, "a file that exists")
        check(
            self.ssl_certfile is not None or (self.ssl_keyfile is None and self.ssl_cert_reqs == 0),
            "ssl_certfile",
            "a file, where HTTPS is asked for",
        )
        check(not self.root_path or self.root_path.startswith("/"), "root_path", "a path that begins with /")
