"""Wrong inputs of every command, chosen from the documents alone: each is answered in one line, before torch is imported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from micro import write_micro
from rows import ROWS
from tiny import write_tiny_model

from lm_harmony.cli.main import main

ALL = """
import io, json, shlex, sys
from contextlib import redirect_stderr, redirect_stdout
from lm_harmony.cli.main import main

def answer(words):
    out, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors):
        try:
            status = main(words)
        except SystemExit as end:
            status = end.code
    loaded = [name for name in ("torch", "transformers", "datasets", "lm_eval") if name in sys.modules]
    return {"status": status, "out": out.getvalue(), "error": errors.getvalue(), "loaded": loaded}

print(json.dumps([answer(shlex.split(line)) for line in json.load(sys.stdin)]))
"""
"""Carries out command lines in one process and prints their answers as JSON. Each one must leave torch to the next ones."""
RUN = "run --base_model model --task_name micro.yaml --data_dir ."
STUDY = "models: [model]\nbenchmarks: [micro.yaml]\nresults_dir: out\ndata_dir: .\n"
STUDIES = {
    "good": STUDY,
    "key": f"{STUDY}sedes: [1]\n",
    "seed": f"{STUDY}seeds: [-1]\n",
    "huge_seed": f"{STUDY}seeds: [99999999999]\n",
    "text": f"{STUDY}seeds: one\n",
    "device": f"{STUDY}execution: {{device: gpu}}\n",
    "rates": f"{STUDY}recipe: {{learning_rate: [2e-5, 1e-4]}}\n",
    "one_rate": f"{STUDY}choose: validation\nrecipe: {{learning_rate: [2e-5]}}\n",
    "by_test": f"{STUDY}choose: test\nrecipe: {{learning_rate: [2e-5, 1e-4]}}\n",
    "no_rates": f"{STUDY}choose: validation\n",
    "no_direct": f"{STUDY}direct: false\ndirect_fewshot: [5]\n",
    "several": STUDY.replace("micro.yaml", "'arc_*'"),
    "file": STUDY.replace("out", "a_file"),
    "null": STUDY.replace("results_dir: out", "results_dir:"),
    "unclosed": "models: [a\nb: }",
    "empty": "",
    "no_rows": STUDY.replace("data_dir: .\n", ""),
}
LONG = "x" * 300
CASES: dict[str, list[tuple[str, str]]] = {
    "run": [
        ("run --base_model model --task_name 'arc_*'", "'arc_*' stands for several tasks"),
        ("run --base_model model --task_name arc_easy,sst2", "'arc_easy,sst2' stands for several tasks"),
        (
            "run --base_model model --task_name mmlu",
            "'mmlu' is a group of lm_eval tasks, and these have no training split: mmlu_abstract_algebra, mmlu_anatomy",
        ),
        (
            "run --base_model model --task_name ai2_arc",
            "'ai2_arc' is a group of lm_eval tasks. Give the name of one task of that",
        ),
        (
            "run --base_model model --task_name openllm",
            "has no aggregate_metric_list, so lm_eval gives it no score. Name its tasks",
        ),
        (
            "run --base_model model --task_name mmlu_stem --train_on mmlu",
            "'mmlu' is a group of lm_eval tasks. Give the name of one",
        ),
        (
            "run --base_model model --task_name bbh --train_on mmlu_aux",
            "rows of mmlu_aux (output_type multiple_choice) cannot be w",
        ),
        ("run --base_model model --task_name mmlu --train_on mmlu_aux --data_dir .", "mmlu_abstract_algebra/test.jsonl does not"),
        ("run --base_model model --task_name ''", "the value of --task_name is empty"),
        ("run --base_model '' --task_name arc_easy", "the value of --base_model is empty"),
        ("run --base_model= --task_name arc_easy", "the value of --base_model is empty"),
        ("run --base_model ./modle --task_name arc_easy", "the folder ./modle does not exist. Did you mean 'model'?"),
        (
            "run --base_model t5 --task_name arc_easy",
            "model_type = 't5' in config.json is no causal language model. Use a decoder",
        ),
        ("run --base_model not_json --task_name arc_easy", "not_json/config.json cannot be used: it is not JSON"),
        ("run --base_model a_list --task_name arc_easy", "a_list/config.json cannot be used: it holds no mapping"),
        ("run --base_model no_weights --task_name arc_easy", "model no_weights: it has no model.safetensors."),
        ("run --base_model model --task_name corpus:", "corpus:. does not exist. Give a .jsonl or .txt file"),
        (f"{RUN} --device mps", "it is the GPU of a Mac"),
        (f"{RUN} --device gpu", "device must be auto, cpu, mps, cuda or one such as cuda:1, got 'gpu'"),
        (f"{RUN} --results_dir a_file", "results_dir: a_file is a file"),
        (f"{RUN} --engine compiled --device cpu", "engine = compiled needs a CUDA device, got device = cpu"),
        (f"{RUN} --resume_from_checkpoint --overwrite", "overwrite contradicts resume_from_checkpoint"),
        (f"{RUN} --use_peft False", "unrecognized options: False. A switch has no value: --NAME is yes and --no_NAME is no."),
        (f"{RUN} --peft_config.bias al", "got 'al'. Did you mean 'all'?"),
        ("run --base_model model --task_name leaderboard9", "'leaderboard9' is a suite of benchmarks. Name it under"),
        (
            "run --base_model model --task_name humaneval --data_dir rows",
            "it has no training split; --train_on mmlu_aux",
        ),
        (f"{RUN} --exp_name {LONG}", "has 300 bytes, and file systems allow 255"),
        (f"{RUN} --exp_name ''", "the value of --exp_name is empty"),
        (f"{RUN} --random_seed -1", "random_seed must be from 0 to 4294967295, got -1"),
        (f"{RUN} --random_seed 99999999999999999999", "random_seed must be from 0 to 4294967295"),
        (f"{RUN} --peft_config.r 0", "lm-harmony: peft_config.r must be at least 1, got 0"),
        (f"{RUN} --learning_rates", "learning_rates"),
        (f"{RUN} --learning_rates 1e-4", "learning_rates = [0.0001] must have at least two rates to choose from"),
        (f"{RUN} --learning_rates 1e-4 1e-4", "learning_rates = [0.0001, 0.0001] has a rate twice"),
        (f"{RUN} --learning_rates 1e-4 0", "learning_rates[1] must be a positive number, got 0.0"),
        (f"{RUN} --learning_rates 1e-4 nan", "learning_rates[1] must be a positive number, got nan"),
        (f"{RUN} --learning_rates 1e-4 -2e-5", "learning_rates[1] must be a positive number, got -2e-05"),
        (f"{RUN} --learning_rates 1e-4 high", "--learning_rates must be values with spaces between them, of the type"),
        (f"{RUN} --learning_rates 1e-4 2e-5 --train_param.learning_rate 2e-5", "contradicts learning_rates = [0.0001, 2e-05]"),
        (f"{RUN} --learning_rates 1e-4 2e-5 --eval_every_epoch", "eval_every_epoch contradicts learning_rate = [0.0001, 2e-05]"),
        (f"{RUN} --include_path nowhere", "include_path = nowhere is not a folder"),
        (f"{RUN} --near_duplicates remove", "invalid choice 'remove' for argument '--near_duplicates'"),
        (f"{RUN} --near_duplicates drop --split_protocol published", "near_duplicates = drop contradicts split_protocol"),
        (f"{RUN} --only_evaluate", "the run is not finished"),
        (f"{RUN} --eval_max_batch_size two", "--eval_max_batch_size must be a whole number, got 'two'"),
        (f"{RUN[:-1]}latin", "latin/micro/train.jsonl cannot be read: 'utf-8' codec"),
        ("run --base_model model --task_name corpus:latin.txt", "latin.txt cannot be read: 'utf-8' codec"),
        (
            "run --base_model model --task_name corpus:page.jsonl",
            "page.jsonl line 1: the row lacks the column 'text', it has page",
        ),
        (f"{RUN[:-1]}broken", "broken/micro/train.jsonl line 1, column 2: not JSON"),
    ],
    "plan": [
        ("plan", "missing: PATH (the study's YAML file)"),
        ("plan nowhere.yaml", "nowhere.yaml cannot be read"),
        ("plan .", ". is a folder, and a study's YAML file is expected"),
        ("plan latin.csv", "latin.csv is not YAML: 'utf-8' codec"),
        ("plan empty.yaml", "empty.yaml must be a mapping of keys to values"),
        ("plan good.yaml --workers 0", "workers must be at least 1, got 0"),
        ("plan good.yaml --joint -1", "joint must be at least 1, got -1"),
        ("plan good.yaml --only nothing", "'nothing' matches none of the 1 runs"),
        ("plan good.yaml --hardware ''", "the value of --hardware is empty"),
        ("plan good.yaml --hardware h10", "hardware: no data for 'h10'. Did you mean 'h100'? Known: h200, h100"),
        ("plan good.yaml --format xml", "invalid choice 'xml' for argument '--format'"),
        ("plan several.yaml", "several.yaml, line 2: benchmarks[0].task = 'arc_*' stands for several"),
    ],
    "fetch": [
        ("fetch", "missing: PATH"),
        ("fetch nowhere.yaml", "nowhere.yaml cannot be read"),
        ("fetch model", "model is a folder, and a study's YAML file is expected"),
        ("fetch good.yaml --data_dir a_file", "data_dir: a_file is a file"),
        ("fetch good.yaml --models_dir a_file/models", "a_file is a file, so a_file/models cannot be a folder"),
        (f"fetch good.yaml --data_dir {LONG}", "data_dir: the name xxxx"),
        ("fetch good.yaml --models_dir ''", "the value of --models_dir is empty"),
        ("fetch no_rows.yaml", "data_dir is missing in the flags and in the study file"),
        ("fetch key.yaml", "key.yaml, line 5: no key 'sedes'. Did you mean 'seeds'?"),
        ("fetch unclosed.yaml", "unclosed.yaml is not YAML"),
    ],
    "study": [
        ("study", "missing: PATH"),
        ("study nowhere.yaml", "nowhere.yaml cannot be read"),
        ("study latin.csv", "latin.csv is not YAML: 'utf-8' codec"),
        ("study seed.yaml", "seed.yaml, line 5: seeds[0]: a seed must be from 0 to 4294967295, got -1"),
        ("study huge_seed.yaml", "huge_seed.yaml, line 5: seeds[0]: a seed must be from 0 to 4294967295"),
        ("study text.yaml", "text.yaml, line 5: seeds"),
        ("study rates.yaml", "rates.yaml, line 5: recipe.learning_rate = [2e-05, 0.0001] needs a rule to choose by. Add choose:"),
        ("study one_rate.yaml", "one_rate.yaml, line 6: recipe.learning_rate = [2e-05] must have at least two rates"),
        ("study by_test.yaml", "by_test.yaml, line 5: choose must be validation, got 'test'"),
        ("study no_direct.yaml", "no_direct.yaml, line 6: direct_fewshot = [5] contradicts direct = false: no direct"),
        ("study no_rates.yaml", "no_rates.yaml, line 5: choose = validation has nothing to choose from"),
        ("study device.yaml", "device.yaml, line 5: execution.device must be auto, cpu, mps, cuda"),
        ("study null.yaml", "null.yaml, line 3: results_dir must be text, got None"),
        ("study file.yaml", "a_file is a file"),
        ("study file.yaml --dry_run", "a_file is a file"),
        ("study good.yaml --workers -1", "workers must be at least 1, got -1"),
        ("study good.yaml --dry-runs", "Did you mean --dry_run?"),
    ],
    "status": [
        ("status", "missing: PATH"),
        ("status nowhere.yaml", "nowhere.yaml cannot be read"),
        ("status .", ". is a folder, and a study's YAML file is expected. Give that file, such as study.yaml."),
        ("status latin.csv", "is not YAML"),
        ("status empty.yaml", "must be a mapping"),
        ("status unclosed.yaml", "is not YAML"),
        ("status key.yaml", "line 5: no key 'sedes'"),
        ("status file.yaml", "a_file is a file"),
        ("status good.yaml more", "unrecognized options: more"),
        ("status good.yaml --format yaml", "invalid choice 'yaml'"),
    ],
    "leaderboard": [
        ("leaderboard", "results is missing"),
        ("leaderboard nowhere", "nowhere is neither a folder nor"),
        ("leaderboard a_folder", "no finished run lies below a_folder"),
        ("leaderboard latin.csv", "latin.csv: it cannot be read as CSV: 'utf-8' codec"),
        ("leaderboard latin.json", "latin.json is not JSON: 'utf-8' codec"),
        ("leaderboard empty.csv", "needs the column 'model' and at least one line (got no columns)"),
        ("leaderboard other.csv", "needs the column 'model' and at least one line (got a, b)"),
        ("leaderboard list.json", "it needs the key train_before_test or direct_eval"),
        ("leaderboard words.csv", "words.csv, line 2, column arc_easy: 'abc' is not a number"),
        ("leaderboard twice.csv", "x has two trained scores on arc_easy"),
        ("leaderboard --published --preparation direct", "only trained scores"),
    ],
    "analyze": [
        ("analyze", "results is missing"),
        ("analyze nowhere", "nowhere is neither a folder nor"),
        ("analyze a_folder", "no finished run lies below a_folder"),
        ("analyze published -o a_file --no-figures", "output: a_file is a file"),
        (f"analyze published -o {LONG} --no-figures", "output: the name xxxx"),
        ("analyze published --family Pithia --no-figures", "Did you mean 'Pythia'?"),
        ("analyze published --size 7 1 --no-figures", "size = 7 1 holds no size"),
        ("analyze published --bump arc_easy nope --no-figures", "benchmark 'nope' is not in"),
        (
            "analyze a_folder --fixed nowhere",
            "fixed: nowhere is not a folder. Name the results_dir of a study with one learning rate",
        ),
        ("analyze published --fixed a_folder", "fixed = a_folder needs a folder of runs to compare with"),
        ("analyze one.csv --fixed a_folder", "fixed = a_folder needs a folder of runs to compare with"),
        ("analyze a_folder --fixed ''", "the value of --fixed is empty"),
        ("analyze published --scale log", "invalid choice 'log'"),
        ("analyze published --kind chat", "invalid choice 'chat'"),
    ],
    "rows": [
        ("rows", "missing: PATH"),
        ("rows nowhere", "nowhere is not a folder"),
        ("rows a_file", "a_file is not a folder"),
        ("rows a_folder", "results: no finished run lies below a_folder. Run a study, or name its results_dir."),
        ("rows a_folder more", "unrecognized options: more"),
        ("rows a_folder --tau 2", "tau must be in [-1, 1], got 2.0"),
        ("rows a_folder --tau nan", "tau must be in [-1, 1], got nan"),
        ("rows a_folder --tau high", "--tau must be a number, got 'high'."),
        ("rows a_folder --figures one.csv", "figures: one.csv is a file"),
        (f"rows a_folder --figures {LONG}", "figures: the name xxxx"),
        ("rows a_folder --format xml", "invalid choice 'xml'"),
    ],
    "audit": [
        ("audit", "missing: PATH"),
        ("audit nowhere", "nowhere is neither a folder nor"),
        ("audit published", "results: the published board has no direct scores to compare with. Give a folder of runs"),
        ("audit one.csv", "3 models and 2 benchmarks are needed"),
        ("audit a_folder", "no finished run lies below a_folder"),
        ("audit a_file", "a_file is neither a folder nor"),
        ("audit latin.csv", "it cannot be read as CSV"),
        ("audit latin.json", "is not JSON"),
        ("audit one.csv more", "unrecognized options: more"),
        ("audit one.csv --format xml", "invalid choice 'xml'"),
    ],
    "compare": [
        ("compare", "missing: PATH"),
        ("compare published", "missing: STR (name of a model in the results"),
        ("compare published google/gemma-7b", "missing: STR (name of another model)"),
        ("compare published google/gemma-7b google/gemma-7b", "the two models must differ"),
        ("compare published google/gemma-7b google/gema-2b", "Did you mean 'google/gemma-2b'"),
        ("compare published google/gemma-7b ''", "a value is empty"),
        ("compare nowhere a b", "nowhere is neither a folder nor"),
        ("compare latin.csv a b", "it cannot be read as CSV"),
        ("compare one.csv x y", "model 'y' is not in one.csv"),
        ("compare published a b --format xml", "invalid choice 'xml'"),
    ],
    "page": [
        ("page", "results is missing"),
        ("page nowhere", "nowhere is neither a folder nor"),
        ("page a_folder", "no finished run lies below a_folder"),
        ("page --published -o a_folder", "output: a_folder is a folder"),
        ("page --published -o a_file/board.html", "a_file is not a folder"),
        ("page --published -o nowhere/board.html", "nowhere is not a folder"),
        (f"page --published -o {LONG}.html", "File name too long"),
        ("page --published -o ''", "the value of -o is empty"),
        ("page latin.csv", "it cannot be read as CSV"),
        ("page list.json", "it needs the key train_before_test or direct_eval"),
    ],
    "place": [
        ("place", "results is missing"),
        ("place nowhere", "nowhere is neither a folder nor"),
        ("place --suggest 0", "suggest must be between 1 and 6 (got 0). Ask for 3 benchmarks: --suggest 3."),
        ("place --suggest 7", "suggest must be between 1 and 6 (got 7). Ask for 3"),
        ("place model", "results: model is the folder of a model. Add --until 10"),
        ("place --suggest two", "--suggest must be a whole number, got 'two'"),
        ("place published", "has 61 models. Name one with --model"),
        ("place published --model nope", "model 'nope' is not in the published board"),
        ("place published --model ''", "the value of --model is empty"),
        ("place '' --until 10", "a value is empty"),
        ("place ./modle --until 10", "the folder ./modle does not exist. Did you mean 'model'?"),
        ("place t5 --until 10", "model_type = 't5' in config.json is no causal language model"),
        ("place model --until abc", "--until must be a whole number, got 'abc'"),
        ("place model --until 100", "until must be from 1 to 61, got 100"),
        ("place model --hours nan", "hours must be a positive number, got nan"),
        ("place model --until 10 --device mps", "it is the GPU of a Mac"),
        ("place model --until 10 --data_dir nowhere", "data_dir = nowhere has no folder of a published benchmark"),
        ("place model --until 10 --data_dir data --random_seed -1", "random_seed must be from 0"),
        ("place model --until 10 --hardware tpu", "hardware: no data for 'tpu'"),
        ("place model --until 10 --data_dir data --results_dir a_file", "results_dir: a_file is a file"),
    ],
    "benchmarks": [
        ("benchmarks more", "unrecognized options: more"),
        ("benchmarks --format xml", "invalid choice 'xml'"),
        ("benchmarks --format CSV", "invalid choice 'CSV'"),
        ("benchmarks --format ''", "the value of --format is empty"),
        ("benchmarks --format", "missing value for argument '--format'"),
        ("benchmarks --frmat csv", "Did you mean --format?"),
        (
            "benchmarks --overlap mmlu",
            "'mmlu' is a group of lm_eval tasks. Give the name of one task of that group, such as mmlu_a",
        ),
        ("benchmarks --published", "unrecognized or misplaced options: --published"),
        ("benchmarks --category language", "unrecognized options: --category, language"),
        ("benchmark", "there is no command 'benchmark'. Did you mean 'benchmarks'?"),
        ("benchmarks arc_easy --format csv", "unrecognized options: arc_easy"),
    ],
    "models": [
        ("models more", "unrecognized options: more"),
        ("models --format xml", "invalid choice 'xml'"),
        ("models --format JSON", "invalid choice 'JSON'"),
        ("models --format ''", "the value of --format is empty"),
        ("models --format", "missing value for argument '--format'"),
        ("models --fromat csv", "Did you mean --format?"),
        ("models --family Pythia", "unrecognized or misplaced options"),
        ("models --published", "unrecognized or misplaced options"),
        ("model", "there is no command 'model'. Did you mean 'models'?"),
        ("models Pythia", "unrecognized options: Pythia"),
    ],
    "export": [
        ("export", "missing: "),
        ("export a_folder", "missing: --to"),
        ("export a_folder --to xml", "invalid choice 'xml'"),
        ("export a_folder --to CSV", "invalid choice 'CSV'"),
        ("export a_folder --to ''", "the value of --to is empty"),
        ("export '' --to csv", "a value is empty"),
        ("export a_folder --to csv more", "unrecognized options: more"),
        ("export a_folder --to csv -o ''", "the value of -o is empty"),
        ("export a_folder --to csv -o a_file", "output: a_file is a file"),
        ("export a_folder --to every-eval-ever", "organization is missing"),
        ("export a_folder --to csv --organization me", "organization is for --to every-eval-ever, and --to is csv. Change"),
        ("export a_folder --to lm_eval --pull_request", "pull_request is for --to hub, and --to is lm_eval. Change"),
    ],
    "submit": [
        ("submit", "missing: PATH"),
        ("submit nowhere", "results: nowhere does not exist. Give the folder of a run"),
        ("submit a_file", "results: a_file is a file. Give the folder of a run"),
        ("submit model", "results: no finished run lies below model"),
        ("submit ''", "a value is empty"),
        ("submit a_folder -o a_file", "output: a_file is a file"),
        ("submit a_folder -o ''", "the value of -o is empty"),
        ("submit a_folder --name ''", "the value of --name is empty"),
        ("submit a_folder --name ../evil", "name = '../evil' is no name for a board. Its form is MODEL or ORG/MODEL"),
        ("submit a_folder --name a/b/c", "name = 'a/b/c' is no name for a board"),
        ("submit a_folder more", "unrecognized options: more"),
        ("submit a_folder --model x", "unrecognized or misplaced options"),
    ],
    "board": [
        ("board", "missing: {add} (what to do with the files)."),
        ("board remove run.zip", "invalid choice 'remove'"),
        ("board add", "submissions is missing"),
        ("board add nowhere.zip", "nowhere.zip is not a file"),
        ("board add model", "model is not a file"),
        ("board add a_file", "a_file is no valid submission: File is not a zip file"),
        ("board add latin.json", "latin.json is no valid submission"),
        ("board add a_file --results a_file", "results_dir: a_file is a file"),
        ("board add a_file --sha256 abc", "sha256: a_file has e3b0c44298fc"),
        ("board add a_file latin.json --sha256 abc", "sha256 is that of one file, and 2 are given"),
        ("board add a_file --model model", "model is for --rescore. Add --rescore, or remove --model."),
        ("board add a_file --adapter model", "adapter is for --rescore"),
        ("board add a_file --data_dir .", "data_dir is for --rescore"),
        ("board add a_file --include_path .", "include_path is for --rescore"),
        ("board add a_file --allow_task_code", "allow_task_code is for --rescore"),
        ("board add a_file --rescore --model nothere", "model = nothere is not a folder. Give the model's folder"),
        ("board add a_file --rescore --model data/nothere", "model = data/nothere is not a folder"),
        ("board add a_file --rescore --model a_file", "model = a_file is not a folder"),
        ("board add a_file --rescore --adapter nothere", "adapter = nothere is not a folder"),
        ("board add a_file --rescore --data_dir nothere", "data_dir = nothere is not a folder"),
        ("board add a_file --rescore --include_path nothere", "include_path = nothere is not a folder"),
        ("board add a_file --rescore --model model", "a_file is no valid submission"),
        ("board add a_file --reskore", "Did you mean --rescore?"),
    ],
    "demo": [
        ("demo more", "unrecognized options: more"),
        ("demo --fast yes", "unrecognized options: yes"),
        ("demo --workers 2", "unrecognized or misplaced options: --workers 2"),
        ("demo --results_dir a_file", "a_file is a file"),
        ("demo --results_dir a_file/demo", "a_file is a file"),
        (f"demo --results_dir {LONG}", "results_dir: the name xxxx"),
        ("demo --results_dir ''", "the value of --results_dir is empty"),
        ("demo --results_dir model/config.json", "config.json is a file"),
        ("demo --build_dir nowhere", "build_dir = nowhere: no finished build of the demo"),
        ("demo --build_dir a_file", "build_dir = a_file: no finished build of the demo"),
    ],
}
"""Command -> command lines with a part of their answer."""


def write_world(folder: Path) -> None:
    """Write the models, rows, studies and files of scores that the command lines name."""
    write_micro(folder)
    write_tiny_model(folder / "model")
    (folder / "a_file").touch()
    (folder / "a_folder").mkdir()
    for name, config in {"t5": '{"model_type": "t5", "is_encoder_decoder": true}', "not_json": "{", "a_list": "[1]"}.items():
        shutil.copytree(folder / "model", folder / name)
        (folder / name / "config.json").write_text(config, encoding="utf-8")
    shutil.copytree(folder / "model", folder / "no_weights")
    (folder / "no_weights" / "model.safetensors").unlink()
    for name, content in {"latin": b'{"number": "caf\xe9"}\n', "broken": b"{\n"}.items():
        shutil.copytree(folder / "micro", folder / name / "micro")
        (folder / name / "micro" / "train.jsonl").write_bytes(content)
    for name, text in STUDIES.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    (folder / "latin.csv").write_bytes(b"model,arc_easy\ncaf\xe9,1\n")
    (folder / "latin.txt").write_bytes(b"caf\xe9\n\none\n\ntwo")
    (folder / "page.jsonl").write_text('{"page": "x"}\n', encoding="utf-8")
    (folder / "latin.json").write_bytes(b'{"a": "caf\xe9"}')
    scores = {"empty": "", "other": "a,b\n1,2\n", "one": "model,arc_easy\nx,50\n", "words": "model,arc_easy\nx,abc\n"}
    for name, text in {**scores, "twice": "model,arc_easy\nx,1\nx,2\n"}.items():
        (folder / f"{name}.csv").write_text(text, encoding="utf-8")
    (folder / "list.json").write_text("[1, 2]", encoding="utf-8")
    (folder / "data" / "arc_easy").mkdir(parents=True)
    for split, lines in ROWS["arc_easy"].items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "data" / "arc_easy" / f"{split}.jsonl").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return the answer to each command line."""
    folder = tmp_path_factory.mktemp("wrong")
    write_world(folder)
    before = sorted(folder.rglob("*"))
    lines = [line for cases in CASES.values() for line, _ in cases]
    command = [sys.executable, "-c", ALL]
    done = subprocess.run(command, cwd=folder, input=json.dumps(lines), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(folder.rglob("*")) == before  # nothing was written
    return dict(zip(lines, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("command", CASES)
def test_ten_wrong_inputs_of_a_command_are_answered_in_one_line(command: str, answers: dict[str, dict[str, Any]]) -> None:
    assert len(CASES[command]) >= 10
    for line, message in CASES[command]:
        answer = answers[line]
        first, *more = answer["error"].splitlines() or [""]
        assert "?." not in first, line
        assert first.startswith("lm-harmony: ") and message in first, f"{line}\n{answer['error']}"
        assert answer["status"] == (2 if more else 1) and answer["out"] == "", line
        assert [text.startswith("See lm-harmony") for text in more] == [True] * len(more) and len(more) <= 1, line
        assert not answer["loaded"], line


def test_every_command_has_wrong_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["-h"])
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert sorted(shown) == sorted(CASES)
