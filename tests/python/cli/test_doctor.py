from types import SimpleNamespace

import pytest

from trt_moe import doctor, hardware
from trt_moe.compile import flavour
from trt_moe.errors import DeviceError, MissingDependencyError


def test_devices_of_nvidia_smi(monkeypatch):
    monkeypatch.setattr(hardware, "_run", lambda *command: "NVIDIA X, 81559, 9.0, 580.10\nNVIDIA Y, [N/A], 8.7, 580.10")
    monkeypatch.setattr(hardware, "_driver_version", lambda: None)
    report = hardware.gpu_report()
    assert report["driver"] == "580.10"
    assert report["source"] == "nvidia-smi"
    assert report["devices"][0] == {
        "name": "NVIDIA X", "memory_mib": 81559, "compute_capability": "9.0", "driver": "580.10",
    }  # fmt: skip
    assert report["devices"][1]["memory_mib"] == 0


def no_gpu(monkeypatch, pci, driver):
    monkeypatch.setattr(hardware, "_from_nvidia_smi", list)
    monkeypatch.setattr(hardware, "_from_nvml", list)
    monkeypatch.setattr(hardware, "_pci_devices", lambda: pci)
    monkeypatch.setattr(hardware, "_driver_version", lambda: driver)


def test_a_gpu_without_driver_is_explained(monkeypatch):
    no_gpu(monkeypatch, ["0000:01:00.0"], None)
    assert "driver is not loaded" in hardware.gpu_report()["why_none"]
    missing = doctor.diagnose()["missing"]
    assert any(item["command"] == "sudo apt install nvidia-driver" for item in missing)


def test_a_driver_without_devices_is_explained(monkeypatch):
    no_gpu(monkeypatch, [], "580.10")
    assert "--gpus all" in hardware.gpu_report()["why_none"]


def test_jetson(monkeypatch):
    text = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic"
    monkeypatch.setattr(hardware, "_read", lambda path: text)
    monkeypatch.setattr(hardware, "_run", lambda *command: "6.2+b77")
    assert hardware.jetson_report() == {"release": "Jetson Linux 36.4.3", "jetpack": "JetPack 6.2+b77"}
    monkeypatch.setattr(hardware, "_read", lambda path: None)
    assert hardware.jetson_report() == {"release": None, "jetpack": None}


def test_a_quota_is_told_where_there_is_one(monkeypatch, capsys):
    monkeypatch.setattr(hardware, "_of_the_core", lambda: (1, 2))
    doctor.print_report(doctor.diagnose())
    assert "1 usable" in (text := capsys.readouterr().out) and "cgroup quota 2" in text
    monkeypatch.setattr(hardware, "_of_the_core", lambda: None)
    cpu = hardware.cpu_report()
    assert (cpu["usable"], cpu["quota"]) == (cpu["affinity"], None)


def test_missing_packages_come_with_their_command(monkeypatch):
    versions = {"openvino": "1.0"}
    monkeypatch.setattr(doctor, "_version", lambda name: versions.get(name))
    monkeypatch.setattr(doctor, "_pinned_openvino", lambda: "2026.4.1")
    report = doctor.diagnose()
    commands = [item["command"] for item in report["missing"]]
    assert "pip install 'openvino==2026.4.1'" in commands
    assert "pip install '.[train]'" in commands
    doctor.print_report(report)


def not_installed(name):
    raise ModuleNotFoundError(name)


def test_the_flavour_that_would_build(monkeypatch):
    monkeypatch.setattr(
        doctor, "find_flavour", lambda: flavour.Flavour("tensorrt", SimpleNamespace(__version__="10.3.0"))
    )
    assert doctor.diagnose()["tensorrt"]["flavour"] == "TensorRT 10.3.0"


def test_a_gpu_without_tensorrt(monkeypatch):
    device = {"name": "NVIDIA X", "memory_mib": 1, "compute_capability": "8.9", "driver": "1"}
    monkeypatch.setattr(hardware, "_from_nvidia_smi", lambda: [device])
    monkeypatch.setattr(doctor, "find_flavour", lambda: flavour.find_flavour(load=not_installed))
    commands = {item["command"]: item["for"] for item in doctor.diagnose()["missing"]}
    assert commands["pip install '.[rtx]'"] == "engines on the GPU"


def test_engines_for_other_gpus_can_be_built_without_one(monkeypatch):
    no_gpu(monkeypatch, [], None)
    monkeypatch.setattr(doctor, "find_flavour", lambda: flavour.find_flavour(load=not_installed))
    commands = {item["command"]: item["for"] for item in doctor.diagnose()["missing"]}
    assert commands["pip install '.[rtx]'"] == "trt-moe build, for GPUs elsewhere"


GPU = {"name": "NVIDIA X", "memory_mib": 1, "compute_capability": "9.0", "driver": "580.10"}


def fake_core(monkeypatch, build, device=None):
    def cuda_device():
        if device is None:
            raise DeviceError("no NVIDIA driver was found. `trt-moe doctor` shows what this machine has")
        return SimpleNamespace(info=device)

    core = SimpleNamespace(
        cuda_build=lambda: build,
        CudaDevice=cuda_device,
        built_backends=lambda: [],
        usable_cpus=lambda: 1,
        cpu_quota=lambda: 0,
    )
    monkeypatch.setattr("trt_moe._core", core)


@pytest.mark.parametrize(("nvcc", "command"), [(None, "pip install 'nvidia-cuda-nvcc"), ("13.0", doctor.REINSTALL)])
def test_a_gpu_without_the_cuda_backend(monkeypatch, capsys, nvcc, command):
    monkeypatch.setattr(hardware, "_from_nvidia_smi", lambda: [GPU])
    monkeypatch.setattr(doctor, "nvcc_version", lambda: nvcc)
    fake_core(monkeypatch, build="")
    report = doctor.diagnose()
    (item,) = (item for item in report["missing"] if item["what"] == "the CUDA backend")
    assert item["command"].startswith(command)
    assert item["command"].endswith(doctor.REINSTALL)
    assert report["ok"] is False
    doctor.print_report(report)
    assert "not built" in capsys.readouterr().out


def test_a_cuda_backend_that_opens_no_gpu(monkeypatch, capsys):
    monkeypatch.setattr(hardware, "_from_nvidia_smi", lambda: [GPU])
    fake_core(monkeypatch, build="CUDA 13.0 for sm_75, sm_90")
    report = doctor.diagnose()
    assert report["cuda"]["error"] == "no NVIDIA driver was found"
    assert report["ok"] is False
    assert any(item["for"] == "no NVIDIA driver was found" for item in report["missing"])
    doctor.print_report(report)
    assert "CUDA 13.0 for sm_75, sm_90" in capsys.readouterr().out


def test_a_cuda_backend_with_a_gpu_is_enough(monkeypatch, capsys):
    device = {"name": "NVIDIA X", "compute_capability": "9.0", "driver": "13.0", "conditionals": "switch"}
    fake_core(monkeypatch, build="CUDA 13.0 for sm_90", device=device)
    report = doctor.diagnose()
    assert report["ok"] is True
    doctor.print_report(report)
    out = capsys.readouterr().out
    assert "NVIDIA X, compute capability 9.0, driver for CUDA 13.0, SWITCH nodes" in " ".join(out.split())


def test_a_core_that_does_not_load_is_reported(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_core_report", lambda: {"backends": [], "error": "libopenvino.so not found"})
    report = doctor.diagnose()
    assert report["ok"] is False
    doctor.print_report(report)
    out = capsys.readouterr().out
    assert "libopenvino.so not found" in out
    assert "cannot be routed" in out


ALL_THERE = {
    "packages": dict.fromkeys((*doctor.RUNTIME, *doctor.TRAINING, *doctor.SERVING), "1.0"),
    "trt_moe": {"error": None},
    "gpu": {"pci_devices": [], "driver": None, "devices": []},
    "jetson": {"release": None},
    "tensorrt": {"flavour": "TensorRT 10.3.0"},
    "cuda": {"build": "CUDA 13.0 for sm_90", "error": None, "nvcc": None},
}


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({}, []),
        ({"packages": {"rich": None, "typer": None}}, [("typer, rich", "pip install typer rich")]),
        ({"packages": {"timm": None}}, [("timm", "pip install '.[train]'")]),
        ({"packages": {"uvicorn": None, "uvloop": None}}, [("uvicorn, uvloop", "pip install '.[serve]'")]),
        ({"packages": {"openvino": None}}, [("openvino (found none)", "pip install 'openvino==1.0'")]),
        ({"trt_moe": {"error": "no such file"}}, [("the compiled module _core", doctor.REINSTALL)]),
        (
            {"trt_moe": {"error": f"type `{doctor.IN_PLACE}`"}},
            [("the compiled module _core", doctor.IN_PLACE)],
        ),
        ({"gpu": {"pci_devices": ["0000:01:00.0"]}}, [("NVIDIA driver", "sudo apt install nvidia-driver")]),
        ({"gpu": {"pci_devices": ["0000:01:00.0"], "driver": "580.10"}}, []),
        ({"cuda": {"build": "", "nvcc": "13.0"}}, []),  # no GPU asks for it
        (
            {"cuda": {"build": "", "nvcc": "13.0"}, "jetson": {"release": "Jetson Linux 36.4.3"}},
            [("the CUDA backend", doctor.REINSTALL)],
        ),
    ],
)
def test_only_what_is_missing_here_is_named(monkeypatch, changes, missing):
    monkeypatch.setattr(doctor, "_pinned_openvino", lambda: "1.0")
    report = {key: {**found, **changes.get(key, {})} for key, found in ALL_THERE.items()}
    assert [(item["what"], item["command"]) for item in doctor._missing(report)] == missing


def test_openvino_is_pinned_by_the_packages_own_requirement(monkeypatch):
    lines = ["numpy>=1.26", "openvino-genai>=1", 'openvino == 2026.4.1; python_version >= "3.10"']
    monkeypatch.setattr("importlib.metadata.requires", lambda _: lines)
    assert doctor._pinned_openvino() == "2026.4.1"
    monkeypatch.setattr("importlib.metadata.requires", lambda _: None)
    assert doctor._pinned_openvino() is None


def test_what_cannot_be_loaded_or_is_off_is_none(monkeypatch):
    class Broken:
        @property
        def trt(self):
            raise MissingDependencyError("tensorrt cannot be loaded")

    monkeypatch.setattr(doctor, "find_flavour", Broken)
    monkeypatch.setattr(doctor, "cache_root", lambda: None)
    report = doctor.diagnose()
    assert (report["tensorrt"]["flavour"], report["engine_cache"]) == (None, None)
