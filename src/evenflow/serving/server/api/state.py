"""What one running server holds, and the order in which it opens and closes its doors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from evenflow.access.identity import Client, Directory, read_directory
from evenflow.accounts.account_book import AccountBook
from evenflow.accounts.report import read_prices
from evenflow.accounts.spending import Spending
from evenflow.base.errors import ConfigError, EngineDead, EvenFlowError, ServerFull
from evenflow.base.progress import find_teller
from evenflow.base.version import __version__
from evenflow.serving.server.access.adapter_sources import AdapterSources, HubCache, ResolverSource, make_resolver
from evenflow.serving.server.access.adapter_texts import AdapterTexts
from evenflow.serving.server.access.budgets import Budgets
from evenflow.serving.server.access.downloads import DownloadCache
from evenflow.serving.server.access.limits import Limits
from evenflow.serving.server.access.model_names import ModelNames
from evenflow.serving.server.api.answer_form import AnswerForms
from evenflow.serving.server.api.cut_short import CutShortCompletions
from evenflow.serving.server.api.prompts import PromptReader
from evenflow.serving.server.api.sampling_fields import SamplingRules
from evenflow.serving.server.http.connection_books import ConnectionBooks
from evenflow.serving.server.http.origins import is_loopback
from evenflow.serving.server.interfaces import ChatTemplate, Engine, Tokenizer
from evenflow.serving.server.metrics.figure import Server
from evenflow.serving.server.metrics.metrics_page import Metrics
from evenflow.serving.server.observing.request_record import RequestObserver
from evenflow.serving.server.observing.trace_sender import TraceSender
from evenflow.serving.server.server_config import ServerConfig
from evenflow.serving.text import Tokenizer as TextTokenizer
from evenflow.serving.text.own_text import OwnText

log = logging.getLogger("evenflow.server")

BUDGETS_S = 1.0
"""How often it is looked whose budget is spent."""


class Endable(Protocol):
    """Something that is being answered and can be told to end."""

    def cut_off(self) -> None:
        """End now, with ServerFull for whoever waits."""
        ...


class ServerState:
    """Owned by one app in one event loop. Raises ConfigError for a broken clients.toml."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        chat_template: ChatTemplate | None,
        config: ServerConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        unix_time: Callable[[], float] = time.time,
    ) -> None:
        self.engine = engine
        self.config = config
        self.clock = clock
        """time.monotonic, or a test's."""
        self.unix_time = unix_time
        self.accounts: AccountBook | None = None
        """Where what clients use is kept; None: nowhere."""
        self.cut_short = CutShortCompletions()
        self.observers: tuple[RequestObserver, ...] = ()
        """Who is told of each request."""
        self.traces: TraceSender | None = None
        """Of the observers, the one that sends traces; None: nobody does."""
        self.prices = read_prices(config.prices) if config.prices is not None else None
        self.spending = Spending(unix_time, self.prices) if config.accounts else None
        """What clients have used this month; None: no accounts are kept."""
        self.budgets = Budgets(lambda: self.directory, self.spending, has_prices=self.prices is not None)
        self._slowed: dict[str, float] = {}
        """What the weights of clients over their budget were multiplied with, when the engine was last told."""
        self.directory = self._read_directory()
        self.connections = ConnectionBooks()
        self.limits = Limits(config.max_queue, lambda: engine.stats, clock)
        self.texts = (
            AdapterTexts(tokenizer, chat_template)
            if config.adapter_text == "own" and isinstance(tokenizer, TextTokenizer)
            else None
        )
        """What adapters have of their own; None: nothing is looked for."""
        self.names = ModelNames(
            engine,
            config.served_model_names,
            config.adapter_dir,
            clock,
            unix_time,
            config.model_names,
            self._sources(),
            self.texts,
        )
        self.metrics = Metrics(engine, config.served_model_names[0], __version__, config.metrics_top_k, unix_time)
        self.started_s = int(unix_time())
        self.generations: set[Endable] = set()
        """HTTP requests that are being answered by the engine."""
        self.is_draining = False
        self.failure: BaseException | None = None
        """Why the server could not open."""
        self.has_failed = asyncio.Event()
        self.forms = AnswerForms(
            tokenizer, chat_template, parser_name=config.tool_call_parser, reasoning=config.reasoning_parser
        )
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self._reader: PromptReader | None = None
        self._sampling_rules: SamplingRules | None = None
        self._warn_if_exposed()

    @property
    def num_in_flight(self) -> int:
        """HTTP requests that are being answered by the engine."""
        return len(self.generations)

    @property
    def is_warm(self) -> bool:
        """True from the time new requests could be taken, also while the server drains, until the engine is dead."""
        return self._reader is not None and self.engine.is_ready

    @property
    def is_open(self) -> bool:
        """True while new requests are taken."""
        return self.is_warm and not self.is_draining

    @property
    def reader(self) -> PromptReader:
        """Tokenises; only once the engine is warm."""
        assert self._reader is not None, "the engine is not warm yet"
        return self._reader

    @property
    def sampling_rules(self) -> SamplingRules:
        """What sampling fields are checked by; only once the engine is warm."""
        assert self._sampling_rules is not None, "the engine is not warm yet"
        return self._sampling_rules

    def reader_of(self, adapter: str | None) -> PromptReader:
        """Tokenises for requests of ``adapter``, with its own template and tokens if it has some."""
        own = self.own_text(adapter)
        if own is None:
            return self.reader
        info = self.engine.info
        size = max(info.vocab_size, own.tokenizer.vocab_size)
        return PromptReader(own.tokenizer, own.template, info.max_model_len, size)

    def own_text(self, adapter: str | None) -> OwnText | None:
        """What ``adapter`` has of its own; None if nothing."""
        return None if self.texts is None or adapter is None else self.texts.of(adapter)

    async def open_or_fail(self, adapters: Mapping[str, str | Path]) -> None:
        """``open``; what that raises is kept in ``failure``."""
        try:
            await self.open(adapters)
        except Exception as error:
            log.error("the server cannot open: %s", error)
            self.failure = error
            self.has_failed.set()

    async def open(self, adapters: Mapping[str, str | Path]) -> None:
        """Wait for the engine, register ``adapters``, then take requests. Raises what the engine or an adapter fails of."""
        info = await self.engine.wait_until_ready()
        await self._tell_weights()
        num_loaded = 0
        with find_teller(log.info) as tell:

            async def load(name: str, path: str | Path) -> None:
                nonlocal num_loaded
                await self.names.load(name, str(path))
                num_loaded += 1
                tell("registering adapters", num_loaded, len(adapters))

            # All at once: the engine reads one after the other, and nobody waits for an answer in between.
            await asyncio.gather(*(load(name, path) for name, path in adapters.items()))
        await self.names.refresh()
        encode = partial(self.tokenizer.encode, add_special_tokens=False)
        defaults = self.config.sampling_defaults
        self._sampling_rules = SamplingRules(info.vocab_size, encode, self.config.max_logprobs, defaults)
        self._reader = PromptReader(self.tokenizer, self.chat_template, info.max_model_len, info.vocab_size)
        log.info("ready: %s and %d adapters", self.config.served_model_names[0], len(self.names.adapters))

    def check_open(self) -> None:
        """Raise unless new requests are taken."""
        if self.is_draining:
            raise ServerFull("the server is shutting down")
        if not self.engine.is_alive:
            raise EngineDead("the engine process has ended; no request can be served")
        if not self.is_open:
            raise ServerFull("the engine is still warming up")

    def figures(self) -> Server:
        """What /metrics tells of the server itself."""
        shown = Server(self.is_open, self.num_in_flight, self.limits.num_waiting, self.connections)
        if (book := self.accounts) is not None:
            shown = replace(
                shown,
                are_accounts_away=book.is_away,
                num_account_rows_waiting=book.num_waiting,
                num_account_failures=book.num_failures,
                num_account_overflows=book.num_overflowed,
            )
        shown = replace(shown, budget_parts=self.budgets.used_parts())
        if self.traces is not None:
            shown = replace(shown, num_spans_sent=self.traces.num_sent, num_spans_lost=self.traces.num_lost)
        return shown

    def cache_namespace(self, client: Client, salt: str) -> str:
        """Only requests of the same namespace find each other's prefixes in the cache."""
        sharing = self.config.prefix_sharing
        is_shared = not self.directory.needs_key if sharing == "auto" else sharing == "all"
        return salt if is_shared else f"{client.name}\0{salt}"

    def cut_off(self) -> None:
        """End what still runs: its callers get 503, or a last event that says so."""
        for generation in list(self.generations):
            generation.cut_off()

    def log_stream_error(self, error: Exception) -> None:
        """A stream that had begun ended in ``error``; its client has been told."""
        if isinstance(error, EvenFlowError):
            log.warning("a stream ended early: %s", error)
        else:
            log.error("a stream failed", exc_info=error)

    async def reload_clients(self) -> None:
        """Read clients.toml again. A broken file, or one that has lost all keys, changes nothing and is logged."""
        try:
            directory = self._read_directory()
        except ConfigError as error:
            log.error("clients are as before, because the file is broken: %s", error)
            return
        if self.directory.client_by_hash and not directory.client_by_hash and not self.config.is_open:
            log.error(
                "clients are as before, because %s has lost all its keys: nobody could enter; to shut everybody out, end "
                "the server, and to open it start it with --open",
                self.config.clients_file,
            )
            return
        self.directory = directory
        await self._tell_weights()
        log.info("read %s: %d clients", self.config.clients_file, len(directory.clients))

    def _read_directory(self) -> Directory:
        config = self.config
        directory = read_directory(
            config.clients_file, api_keys=config.api_keys, is_open=config.is_open, client_headers=config.client_headers
        )
        self.budgets.check_can_be_kept(directory)
        return directory

    def _sources(self) -> AdapterSources:
        config = self.config
        resolver = config.adapter_resolver and ResolverSource(
            make_resolver(config.adapter_resolver), config.served_model_names[0]
        )
        downloads = DownloadCache(
            config.adapter_downloads or Path(tempfile.gettempdir()) / f"evenflow-downloads-{os.getuid()}",
            config.adapter_downloads_bytes,
            config.adapter_download_timeout_s,
        )
        return AdapterSources(None if config.hub_cache is None else HubCache(config.hub_cache), resolver or None, downloads)

    def _warn_if_exposed(self) -> None:
        if self.directory.needs_key:
            if not self.directory.client_by_hash:
                log.warning("nobody can enter yet: %s holds no key; make one with evenflow keys new", self.config.clients_file)
        elif not is_loopback(self.config.host):
            log.warning(
                "THIS SERVER IS OPEN TO EVERYBODY WHO REACHES %s:%d. Nobody needs a key: whoever can connect may use the "
                "model, load adapters from this machine's folders and name any client. Give --clients FILE or --api-key "
                "KEY, or listen on 127.0.0.1 behind a gateway.",
                self.config.host,
                self.config.port,
            )

    async def watch_budgets(self) -> None:
        """Once a second: clients whose budget slows them get another weight when it is spent, renewed or edited."""
        while True:
            await asyncio.sleep(BUDGETS_S)
            if self.is_warm and self.budgets.slowed() != self._slowed:
                with contextlib.suppress(EvenFlowError):
                    await self._tell_weights()

    async def _tell_weights(self) -> None:
        told, slowed = self.directory, self.budgets.slowed()
        weights = {**told.weight_by_client, **{name: told.weight_by_client.get(name, 1.0) * slowed[name] for name in slowed}}
        await self.engine.set_weights(weights, told.tier_by_client, told.weight_by_tier)
        for name in sorted(set(slowed) ^ set(self._slowed)):
            log.info("client %s is %s its budget of the month", name, "over" if name in slowed else "within")
        self._slowed = slowed
