"""What the peer benchmarks share: the model everyone measures, and how a measurement is reported."""

import json
import os
import pathlib
import resource
import statistics
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# glibc gives large blocks back to the system at once and takes them, zeroed page by page, again:
# a fifth of a training step. Kept blocks cost PyTorch a little memory and make it faster, and it
# reads the setting only when the process starts.
KEEP_BLOCKS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
if sys.platform == "linux" and not KEEP_BLOCKS.keys() & os.environ.keys():
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_BLOCKS})

import torch
import transformers

SEED = 1
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def smollm2_135m_config() -> transformers.LlamaConfig:
    """The shape of SmolLM2-135M; the weights are random, which costs the same."""
    return transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,  # nothing ends a generation early
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )


def use_threads(n_threads: int | None = None) -> None:
    """All cores, unless told otherwise by argument or by OMP_NUM_THREADS."""
    torch.set_num_threads(n_threads or int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))


def new_model(dtype: str, n_threads: int | None = None):
    use_threads(n_threads)
    torch.manual_seed(SEED)
    return transformers.AutoModelForCausalLM.from_config(
        smollm2_135m_config(), dtype=DTYPES[dtype], attn_implementation="sdpa"
    )


def peak_rss_bytes() -> int:
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib if sys.platform == "darwin" else kib * 1024


def tokenizer_of_words(vocabulary: int, folder: pathlib.Path):
    """A word of its own for every id, so that a text has as many tokens as words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    fast = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), unk_token="w0")
    fast.pad_token, fast.eos_token = "w0", "w1"
    return fast


def texts(shape: tuple, vocabulary: int) -> list:
    """Rows of random words, none of them special."""
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(2, vocabulary, shape, generator=generator)
    return [" ".join(f"w{i}" for i in row) for row in ids.tolist()]


def lora():
    """The adapter that ours trains, too."""
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


class Clock(transformers.TrainerCallback):
    """Seconds and share of the cores of each step of a trainer."""

    def __init__(self):
        self.readings = []

    def on_step_begin(self, *_args, **_kwargs):
        self.watch = Stopwatch()

    def on_step_end(self, *_args, **_kwargs):
        self.readings.append(self.watch.read())


class Stopwatch:
    """Seconds, and the share of the asked-for cores that the process got: well below 1 on a busy machine."""

    def __init__(self):
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        elapsed_s = time.perf_counter() - self.wall
        return elapsed_s, (time.process_time() - self.cpu) / elapsed_s / torch.get_num_threads()


def report(settings: dict, n_units: int, readings: list, unit: str = "tokens", **more) -> None:
    """One JSON object on standard output: how many units a second each reading makes."""
    rates = [n_units / elapsed_s for elapsed_s, _ in readings]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    result = {
        **settings,
        "threads": torch.get_num_threads(),
        "versions": versions,
        f"{unit}_per_s": [round(v, 4) for v in rates],
        f"median_{unit}_per_s": round(statistics.median(rates), 4),
        "elapsed_s": [round(elapsed_s, 3) for elapsed_s, _ in readings],
        "core_share": [round(share, 2) for _, share in readings],
        "processor_s": [round(elapsed_s * share * torch.get_num_threads(), 2) for elapsed_s, share in readings],
        "peak_rss_bytes": peak_rss_bytes(),
        **more,
    }
    print(json.dumps(result))
