"""What lm-evaluation-harness computes on a small real model: golden.json.

    python golden/eval/eval.py MODEL DATA

MODEL is stories260K as a Hugging Face folder (`cargo run -p pt-eval --example hugging_face_folder -- STORIES260K.bin TOK512.bin
MODEL` writes it), DATA the folder with the benchmarks' files. The harness' own tasks are used, with their prompts, filters and
metrics; only where the rows come from is replaced, by datasets made here from the files. Nothing is downloaded. The golden
file holds no rows: of each prompt its length and CRC-32, of each answer numbers, or a short reply.
"""

import csv, gzip, io, json, os, pathlib, sys, zlib

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import datasets
import torch
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
import lm_eval.tasks

MODEL, DATA = sys.argv[1], pathlib.Path(sys.argv[2])
torch.set_num_threads(1)
TASKS = pathlib.Path(lm_eval.tasks.__file__).parent


def text(path):
    path = DATA / path
    return gzip.open(path, "rt").read() if path.suffix == ".gz" else path.read_text()


def jsonl(path):
    return [json.loads(line) for line in text(path).splitlines()]


def mmlu(split, subject):
    rows = csv.DictReader(io.StringIO(text(f"mmlu/{split}.csv.gz"), newline=""))
    return [
        {"question": r["question"], "subject": r["subject"], "choices": [r[c] for c in "ABCD"], "answer": "ABCD".index(r["answer"])}
        for r in rows
        if r["subject"] == subject
    ]


def truthfulqa():
    def split(answers):
        parts = [part.strip() for part in answers.strip().split(";")]
        return [part if part.endswith(".") else part + "." for part in parts if part]

    rows = csv.DictReader(io.StringIO(text("truthfulqa/TruthfulQA.csv.gz").lstrip("\ufeff"), newline=""))
    for r in rows:
        best, right, wrong = split(r["Best Answer"].replace(";", ","))[0], split(r["Correct Answers"]), split(r["Incorrect Answers"])
        yield {
            "question": r["Question"],
            "mc1_targets": {"choices": [best] + wrong, "labels": [1] + [0] * len(wrong)},
            "mc2_targets": {"choices": right + wrong, "labels": [1] * len(right) + [0] * len(wrong)},
        }


def bbh(task):
    path = next(p for p in (f"bbh/{task}.json", f"bbh/{task}.json.gz") if (DATA / p).exists())
    return json.loads(text(path))["examples"]


def local(**splits):
    return datasets.DatasetDict({name: datasets.Dataset.from_list(list(rows)) for name, rows in splits.items()})


N = {"truthfulqa_mc1": 24, "truthfulqa_mc2": 24, "gsm8k": 6}
SUBJECTS = ("abstract_algebra", "anatomy") if mmlu("test", "anatomy") else ("abstract_algebra", "astronomy")
SOURCES = {
    "truthfulqa_mc1": local(validation=truthfulqa()),
    "truthfulqa_mc2": local(validation=truthfulqa()),
    "gsm8k": local(train=jsonl("gsm8k/train.jsonl.gz"), test=jsonl("gsm8k/test.jsonl.gz")),
    **{f"mmlu_{s}": local(dev=mmlu("dev", s), test=mmlu("test", s)) for s in SUBJECTS},
    **{f"mmlu_{s}_generative": local(dev=mmlu("dev", s), test=mmlu("test", s)) for s in SUBJECTS[:1]},
    **{f"bbh_cot_fewshot_{t}": local(test=bbh(t)) for t in ("boolean_expressions", "navigate", "word_sorting")},
}

from lm_eval.api.task import ConfigurableTask


def download(self, dataset_kwargs=None, **kwargs):
    self.dataset = SOURCES[self.config.task]


ConfigurableTask.download = download


def crc(s):
    return zlib.crc32(s.encode())


def sample(row):
    arguments = row["arguments"]
    out = {"doc_id": row["doc_id"], "prompt_bytes": len(arguments[0][0].encode()), "prompt_crc32": crc(arguments[0][0])}
    if isinstance(arguments[0][1], str):
        out["logprobs"] = [float(r[0][0]) for r in row["resps"]]
        out["greedy"] = [bool(r[0][1]) for r in row["resps"]]
        out["choices_crc32"] = [crc(a[1]) for a in arguments]
    else:
        out["reply"] = row["resps"][0][0]
        out["filter"] = row["filter"]
    for metric in row["metrics"]:
        out[metric] = float(row[metric])
    return out


model = HFLM(pretrained=MODEL, dtype="float32", device="cpu", batch_size=4)
RUNS = [
    ("truthfulqa_mc1", 0, 24), ("truthfulqa_mc2", 0, 24),
    *[(f"mmlu_{s}", k, 12) for s in SUBJECTS for k in (0, 2)],
    *[(f"mmlu_{s}_generative", 0, 6) for s in SUBJECTS[:1]],
    ("gsm8k", 5, 6), ("gsm8k", 0, 6),
    *[(f"bbh_cot_fewshot_{t}", 3, 3) for t in ("boolean_expressions", "navigate", "word_sorting")],
]  # fmt: skip
runs = []
for task, shots, limit in RUNS:
    kwargs = {"max_gen_toks": 64} if "generative" in task or task.startswith(("gsm8k", "bbh")) else {}
    found = evaluator.simple_evaluate(
        model=model, tasks=[task], num_fewshot=shots, limit=limit, log_samples=True, bootstrap_iters=100,
        gen_kwargs=",".join(f"{k}={v}" for k, v in kwargs.items()) or None, task_manager=TaskManager(),
    )  # fmt: skip
    rows = found["samples"][task]
    results = {k: v for k, v in found["results"][task].items() if isinstance(v, (int, float))}
    runs.append({"task": task, "num_fewshot": shots, "limit": limit, "results": results, "samples": [sample(r) for r in rows], **kwargs})

# Perplexity: the text tokenised without special tokens, as the documentation of `perplexity` says.
plain = HFLM(pretrained=MODEL, dtype="float32", device="cpu", batch_size=1, add_bos_token=False)
from lm_eval.api.instance import Instance

story = text("truthfulqa/TruthfulQATest.csv")[:2000]
total = plain.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (story,), 0)])[0]
rolling = {"file": "truthfulqa/TruthfulQATest.csv", "n_chars": 2000, "logprob": float(total)}


# Replies of other models, and some made up, through the harness' filters and metrics.
def judged(task, doc_ids_and_replies):
    found = TaskManager().load([task])["tasks"][task]
    docs = list(found.eval_docs)
    out = []
    for doc_id, reply in doc_ids_and_replies:
        instance = Instance("generate_until", docs[doc_id], ("", {}), 0, (task, doc_id, 1))
        instance.resps = [reply]
        found._instances = [instance]
        found.apply_filters()
        scores = {name: float(found.process_results(docs[doc_id], [kept])["exact_match"]) for name, kept in instance.filtered_resps.items()}
        out.append({"doc_id": doc_id, "reply": reply, "scores": scores})
    return {"task": task, "samples": out}


solutions = jsonl("gsm8k/example_model_solutions.jsonl.gz")
gsm8k = [(i, solutions[i][k]["solution"][-60:]) for i in range(16) for k in solutions[i] if isinstance(solutions[i][k], dict)]
tails = ["#### {}", "The answer is {}.", "${}", "**{}**", "{}.00", "#### {}.", "{} or 7", "x", "####{}", "-{}", "{}\n#### 5"]
gold = [d["answer"].split("#### ")[-1] for d in SOURCES["gsm8k"]["test"]]
gsm8k += [(i, tail.format(gold[i])) for i in range(4) for tail in tails]
letters = [" {}", "{}", "({})", "{}.", " {}. because", "{}\nB", "\n{}", "the answer is {}", "", "{0} {0}"]
subject = f"mmlu_{SUBJECTS[0]}"
mmlu_gold = ["ABCD"[d["answer"]] for d in SOURCES[subject]["test"]]
mmlu_replies = [(i, form.format(letter)) for i in range(2) for form in letters for letter in (mmlu_gold[i], mmlu_gold[i].lower(), "D")]
bbh_replies = {}
for task in ("boolean_expressions", "navigate", "word_sorting"):
    outputs = json.loads(text(f"bbh/code-davinci-002-cot/{task}_few_shot_template_0-255000.json.gz"))["outputs"]
    by_input = {d["input"].strip(): i for i, d in enumerate(SOURCES[f"bbh_cot_fewshot_{task}"]["test"])}
    asked = lambda o: o["input"].rsplit("\nA: Let's think", 1)[0].split("Q: ", 1)[-1].strip()
    found = [(by_input.get(asked(o)), o["prediction"][-80:]) for o in outputs]
    bbh_replies[task] = [(i, reply) for i, reply in found if i is not None][:20] + [(0, r) for r in ("the answer is True", "So the answer is False.\nthe answer is True.", "the answer is ", "the answer is False!")]
replies = [judged("gsm8k", gsm8k), judged(f"{subject}_generative", mmlu_replies)]
replies += [judged(f"bbh_cot_fewshot_{task}", found) for task, found in bbh_replies.items()]

path = pathlib.Path(__file__).parent / "golden.json"
path.write_text(json.dumps({"model": "stories260K", "lm_eval": lm_eval.__version__, "runs": runs, "replies": replies, "rolling": rolling}, indent=None, separators=(",", ":")).replace('{"task"', '\n{"task"').replace('{"doc_id"', '\n {"doc_id"') + "\n")
print(path.stat().st_size)
