"""The tasks of the benchmark by name: offline ones from installed packages, full-size ones from local files.

Nothing is ever downloaded.
"""

from __future__ import annotations

from pathlib import Path

from evenflow.base.errors import ConfigError, RegistryError
from evenflow.mcbench.names import FILE_TASKS, TASKS
from evenflow.mcbench.tasks.digits import DIGIT_TASKS
from evenflow.mcbench.tasks.file_tasks import load_file_task
from evenflow.mcbench.tasks.model_folder import load_tokenizer
from evenflow.mcbench.tasks.reference import REFERENCE_TASKS, topics_text
from evenflow.mcbench.tasks.task import Task
from evenflow.mcbench.tasks.token_text import token_task


def load_task(name: str, data_root: str | Path | None = None, tokenizer: str | Path | None = None) -> Task:
    """Return a task by name. Raises RegistryError for unknown names and ConfigError for missing or changed data."""
    if name in DIGIT_TASKS:
        return DIGIT_TASKS[name]()
    if name == "tokens":
        return _tokens(tokenizer)
    if name in REFERENCE_TASKS:
        return REFERENCE_TASKS[name]()
    if name not in FILE_TASKS:
        raise RegistryError(f"unknown task {name!r}; known: {', '.join(TASKS)}, and with --data-root: {', '.join(FILE_TASKS)}")
    if data_root is None:
        raise ConfigError(f"task {name} needs --data-root, a folder that holds {name}")
    return load_file_task(name, Path(data_root), tokenizer)


def _tokens(tokenizer: str | Path | None) -> Task:
    """Return next tokens of the language reference that ships with Python, by a model's own tokenizer."""
    if tokenizer is None:
        raise ConfigError("task tokens needs --model FOLDER: it counts in the tokens of the model's own tokenizer")
    topics, digest, is_pinned = topics_text()
    return token_task("tokens", load_tokenizer(tokenizer), "\n".join(topics.values()), digest, is_pinned)
