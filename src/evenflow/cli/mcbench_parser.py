"""The flags of ``evenflow mcbench``."""

from __future__ import annotations

from typing import Any

from evenflow.mcbench.names import DEFAULT_LAYERS, DTYPES


def add_parser(subparsers: Any) -> None:
    """Add the command and its sub-commands."""
    parser = subparsers.add_parser("mcbench", help="does compressing what model-parallel ranks send each other pay?")
    commands = parser.add_subparsers(dest="mcbench_command", metavar="COMMAND", required=True)
    listing = commands.add_parser("list", help="compressors, transports, sites, models, tasks, suites")
    listing.add_argument("--sizes", action="store_true", help="bits per element, transport and gradient of every compressor")

    run = commands.add_parser("run", help="train and measure one configuration")
    run.add_argument("--task", default="digits")
    run.add_argument("--model", default="", help="a built-in name or a local folder; default: the task's own")
    run.add_argument("--tp", type=int, default=1)
    run.add_argument("--pp", type=int, default=1)
    run.add_argument("--dp", type=int, default=1, help="data-parallel ranks, alone (1)")
    run.add_argument("--compress", default="none", metavar="SPEC", help="site=compressor[/transport]; ...")
    run.add_argument(
        "--dense-below",
        default="0",
        metavar="SIZE",
        help="send smaller tensors as they are: a size like 64KiB, or the file of a calibration, which says from where on the "
        "compressors pay (0)",
    )
    run.add_argument("--layers", default=DEFAULT_LAYERS, help=f"all, none, first-half, last-half or 13-24 ({DEFAULT_LAYERS})")
    run.add_argument("--modules", default=".*", metavar="REGEX")
    run.add_argument(
        "--gradient",
        default="",
        help="straight-through, same, masked or autograd, or pp.forward=masked; default: the compressor's own",
    )
    run.add_argument("--warmup-steps", type=int, default=0)
    run.add_argument("--seeds", type=int, default=5)
    run.add_argument("--steps", type=int, default=0, help="training steps; default: the task's")
    run.add_argument("--batch", type=int, default=0)
    run.add_argument("--rate", type=float, default=0.0, help="learning rate; default: the task's, 5e-5 for a model folder")
    run.add_argument("--microbatches", type=int, default=2)
    run.add_argument("--schedule", default="gpipe", help="gpipe or 1f1b")
    run.add_argument("--link", default="unlimited", help="unlimited, or a rate like 1gbit")
    run.add_argument("--hidden", type=int, default=0, help="hidden size of a built-in model")
    run.add_argument("--num-layers", type=int, default=0)
    run.add_argument("--heads", type=int, default=0)
    run.add_argument("--dtype", default="fp32", choices=("fp32", "bf16", "autocast"), help="what the model computes in (fp32)")
    run.add_argument("--timed-steps", type=int, default=20)
    run.add_argument(
        "--threads", type=int, default=1, help="compute threads of each process: equal in all that is compared (1)"
    )
    run.add_argument("--data-root", default="", help="folder with data files for tasks that are not built in")
    run.add_argument("--pretrain", default="", metavar="TASK", help="pre-train the model on this task (with --emulate)")
    run.add_argument("--pretrain-compress", default="none", metavar="SPEC", help="compression during pre-training only")
    run.add_argument("--emulate", action="store_true", help="virtual ranks in one process: accuracy only")
    run.add_argument("--json", metavar="FILE")

    evaluate = commands.add_parser(
        "eval", help="what compressors do to the loss of your own language model; nothing is trained"
    )
    evaluate.add_argument("--model", required=True, metavar="DIR", help="a local folder with its tokenizer")
    evaluate.add_argument("--text", required=True, metavar="FILE", help="UTF-8 text to predict")
    evaluate.add_argument("--tp", type=int, default=2, help="virtual tensor-parallel ranks (2)")
    evaluate.add_argument(
        "--compress",
        action="append",
        default=[],
        metavar="SPEC",
        help="compressors by commas, or site=compressor[/transport]; may be repeated; default: a table of them",
    )
    evaluate.add_argument("--layers", default=DEFAULT_LAYERS)
    evaluate.add_argument("--modules", default=".*", metavar="REGEX")
    evaluate.add_argument("--dtype", default="bf16", choices=DTYPES, help="what the model computes in (bf16)")
    evaluate.add_argument("--length", type=int, default=256, help="tokens of a window (256)")
    evaluate.add_argument("--tokens", type=int, default=8192, help="tokens evaluated (8192)")
    evaluate.add_argument("--batch", type=int, default=4, help="windows in one forward call (4)")
    evaluate.add_argument("--threads", type=int, default=1, help="compute threads (1)")
    evaluate.add_argument("--json", metavar="FILE", help="written after every compressor; the same command goes on with it")

    suite = commands.add_parser("suite", help="run a named set of configurations; resumable")
    suite.add_argument("name", help="paper, modern, break-even, activation-rank or serving")
    suite.add_argument("--out", required=True, metavar="FOLDER")
    suite.add_argument("--seeds", type=int, default=5)
    suite.add_argument("--jobs", type=int, default=1, help="configurations at a time; studies take one, because they are timed")
    suite.add_argument("--budget", default="", help="like 30m or 2h: stop starting configurations after that")
    suite.add_argument(
        "--link",
        default="",
        metavar="LINKS",
        help="run real ranks over this link, with times by part; for break-even several (100mbit,1gbit,unlimited)",
    )
    suite.add_argument("--ranks", default="2", metavar="COUNTS", help="for break-even: how many ranks, one or more, by commas")
    suite.add_argument("--task", default="", help="one task in the place of the suite's own; for activation-rank: digits")
    suite.add_argument("--model", default="", help="a built-in name or a local folder, for --task")
    suite.add_argument("--data-root", default="", help="folder with data files for tasks that are not built in")
    suite.add_argument("--steps", type=int, default=0, help="training steps, with --task; default: the task's")
    suite.add_argument("--timed-steps", type=int, default=20, help="iterations that are timed, with --link (20)")

    calibrate = commands.add_parser("calibrate", help="measure what predictions need, with two local ranks")
    calibrate.add_argument("--link", default="unlimited", help="between the ranks of a node (tensor parallelism)")
    calibrate.add_argument("--link-between", default="", help="between nodes (pipeline boundaries); default: the same link")
    calibrate.add_argument("--json", required=True, metavar="FILE")

    predict = commands.add_parser("predict", help="speed-up by hidden size and nodes, from a calibration")
    predict.add_argument("--machine", required=True, metavar="FILE")
    predict.add_argument("--hidden", default="1024:25600", metavar="LOW:HIGH")
    predict.add_argument("--nodes", default="1:64", metavar="LOW:HIGH")
    predict.add_argument("--link", default="", help="assume another link than the calibrated one, like 100gbit")
    predict.add_argument("--link-between", default="", help="assume this link between nodes, like 100mbit")
    predict.add_argument("--html", required=True, metavar="FILE")

    advise = commands.add_parser("advise", help="which compressor pays for this model on this link")
    advise.add_argument("--model", required=True, help="a built-in name or a local folder")
    advise.add_argument("--tp", type=int, required=True)
    advise.add_argument("--link", default="unlimited")
    advise.add_argument("--machine", metavar="FILE", help="a calibration; default: calibrate now")
    advise.add_argument("--text", metavar="FILE", help="evaluate the model on this text, too")
    advise.add_argument("--results", metavar="FOLDER", help="results of run, suite or eval to take accuracy evidence from")
    for command, sequence, batch, tp in ((predict, 128, 16, 4), (advise, 512, 4, 0)):
        command.add_argument("--gpu", default="", metavar="NAME", help="assume this GPU's data sheet, like a100-80gb or h100")
        command.add_argument("--tflops", type=float, default=0.0, help="assume this arithmetic of a rank (10^12/s)")
        command.add_argument("--seq", type=int, default=sequence, help=f"tokens of a sequence ({sequence})")
        command.add_argument("--batch", type=int, default=batch, help=f"sequences of a micro-batch ({batch})")
        command.add_argument(
            "--dtype", default="bf16", choices=("fp32", "bf16", "fp16"), help="what dense sums travel in (bf16)"
        )
        if tp:
            command.add_argument("--tp", type=int, default=tp, help=f"tensor-parallel ranks of a node ({tp})")

    report = commands.add_parser("report", help="one HTML page of a folder of results")
    report.add_argument("folder")
    report.add_argument("--html", required=True, metavar="FILE")
