"""flowinfer doctor: what this machine has, what is missing, and how to get it."""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
from typing import Annotated, Any

import typer

import flowinfer
from flowinfer.backends.versions import TRIED, in_words, installed, required
from flowinfer.errors import LoadError, UsageError


def command(
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    forget_checks: Annotated[
        bool, typer.Option("--forget-checks", help="Let models be checked again when they are loaded next.")
    ] = False,
) -> None:
    """Check versions, devices, memory, caches and optional packages. Exit 1 if something needed is missing."""
    if forget_checks:
        _forget_checks()
    findings = [*_packages(), *_devices(), *_caches(), *_extras()]
    if json_:
        print(json.dumps(findings, ensure_ascii=False, indent=1))
    else:
        for finding in findings:
            mark = {"ok": "ok     ", "missing": "MISSING", "note": "note   "}[finding["state"]]
            print(f"{mark} {finding['name']}: {finding['found']}" + (f"; {finding['cure']}" if finding["cure"] else ""))
    raise typer.Exit(1 if any(finding["state"] == "missing" for finding in findings) else 0)


def _finding(name: str, found: str, state: str = "ok", cure: str = "") -> dict[str, Any]:
    return {"name": name, "found": found, "state": state, "cure": cure}


def _packages() -> list[dict[str, Any]]:
    findings = [_finding("python", platform.python_version())]
    for name in ("flowinfer", *TRIED, "tokenizers", "huggingface_hub", "datasets"):
        version = installed(name)
        if version is None:
            findings.append(_finding(name, "not installed", "missing", f"pip install {name}"))
            continue
        findings.append(_package(name, version))
    return findings


def _package(name: str, version: str) -> dict[str, Any]:
    """Return whether a package is within what flowinfer asks for, which is what it was tried with."""
    wanted = required(name)
    if name not in (*TRIED, "llama-cpp-python") or not wanted:
        return _finding(name, version)
    if wanted.contains(version, prereleases=True):
        return _finding(name, f"{version} (tried: {in_words(wanted)})")
    cure = f"flowinfer {flowinfer.__version__} was not tried with it: pip install '{name}{wanted}'"
    return _finding(name, version, "note", cure)


def _devices() -> list[dict[str, Any]]:
    from flowinfer.machine import cuda_device_count, this_machine

    findings = [
        _finding(
            device.name,
            f"{device.title}, {device.free_bytes / 1e9:.1f} of {device.total_bytes / 1e9:.1f} GB free",
        )
        for device in this_machine().devices
    ]
    if not cuda_device_count():
        findings.append(_finding("cuda", "no device", "note", "small models run on the CPU; 7B models want a GPU"))
        return findings
    import torch

    if not torch.cuda.is_available():
        findings.append(
            _finding("cuda", "a device, but torch cannot use it", "missing", "install a CUDA build of torch")
        )
    return findings


def _caches() -> list[dict[str, Any]]:
    from flowinfer.fusion.selfcheck import cache_folder, checks_folder
    from flowinfer.machine import hub_cache, is_hub_offline
    from flowinfer.zoo import damage, select_zoo

    hub = hub_cache()
    held = sorted(path.name.removeprefix("models--").replace("--", "/") for path in hub.glob("models--*"))
    zoo = select_zoo()
    is_offline = is_hub_offline()
    return [
        _finding("hub cache", f"{hub}: {', '.join(held) or 'no models'}" + (" (offline mode)" if is_offline else "")),
        _finding("flowinfer cache", str(cache_folder())),
        _finding("load checks", f"{len(list(checks_folder().glob('*')))} remembered; --forget-checks forgets them"),
        _finding("zoo", f"{zoo.name} ({zoo.why})", "note" if zoo.note else "ok", zoo.note or ""),
        *(
            _finding(f"model {name}", fault.message, "missing", fault.help or "")
            for name, spec in zoo.models.items()
            if (fault := damage(spec))
        ),
    ]


def _forget_checks() -> None:
    from flowinfer.fusion.selfcheck import checks_folder

    try:
        for path in checks_folder().glob("*"):
            path.unlink()
    except OSError as error:
        raise UsageError(
            f"{checks_folder()} cannot be emptied: {error.strerror}", help="see who may write it"
        ) from error


def _extras() -> list[dict[str, Any]]:
    from flowinfer.drawing.fonts import has_chinese_font
    from flowinfer.spec import QUANTIZERS

    cjk = "install a CJK font, e.g. fonts-noto-cjk, to draw Chinese names in png"
    has_bits = all(importlib.util.find_spec(name) is not None for name in QUANTIZERS)
    return [
        _gguf(),
        _extra("8- and 4-bit weights on a GPU", has_bits, f"pip install {' '.join(QUANTIZERS)}"),
        _extra("Chinese font for png", has_chinese_font(), cjk),
    ]


def _gguf() -> dict[str, Any]:
    """Return whether GGUF files can be loaded, and where they compute; else also what is missing to build llama.cpp."""
    from flowinfer.backends.gguf.library import library
    from flowinfer.machine import cuda_device_count

    name, version = "GGUF files", installed("llama-cpp-python")
    if version is None:
        cure = "pip install 'flowinfer[gguf]' builds llama.cpp from source"
        return _finding(name, "llama-cpp-python is not installed", "note", cure + _how_to_build())
    try:
        has_gpus = library().llama_supports_gpu_offload()
    except LoadError as error:
        return _finding(name, error.message, "note", error.help or "")
    found = _package("llama-cpp-python", version)
    if has_gpus:
        return found | {"found": f"{found['found']}, computes on GPUs too"}
    wanted = f"'llama-cpp-python{required('llama-cpp-python')}'"
    kind = "CUDA" if cuda_device_count() else "METAL" if platform.system() == "Darwin" else "VULKAN"
    build = f"CMAKE_ARGS=-DGGML_{kind}=on pip install --force-reinstall --no-cache-dir {wanted} builds it for GPUs"
    state = "note" if cuda_device_count() else found["state"]
    cure = "; ".join(filter(None, (found["cure"], build)))
    return found | {"found": f"{found['found']}, computes on the CPU", "state": state, "cure": cure}


def _how_to_build() -> str:
    """Return what is missing to build a package in C++, in words; cmake comes with pip where it is."""
    if any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        return ""
    system = {"Darwin": "xcode-select --install", "Windows": "Visual Studio's build tools"}.get(platform.system())
    return f"; missing for that: a C++ compiler ({system or 'on Debian: apt install build-essential'})"


def _extra(name: str, is_there: bool, cure: str) -> dict[str, Any]:
    return _finding(name, "there" if is_there else "not there", "ok" if is_there else "note", "" if is_there else cure)
