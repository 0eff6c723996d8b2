"""Training scripts in common styles, each predicted to the byte."""

import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import wait_until

from ppdm_bench import ScriptError, Target, predict_peak, predict_script
from ppdm_bench.predictor import lines
from ppdm_bench.predictor.script import prediction
from ppdm_bench.predictor.script.child import RunReport
from ppdm_bench.predictor.script.prediction import ScriptPrediction, measure_script
from ppdm_bench.predictor.timeline import Timeline

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parent / "scripts"
NAMES = sorted(path.stem for path in SCRIPTS.glob("*.py"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def command(name: str, *words: str) -> list[str]:
    return [sys.executable, str(SCRIPTS / f"{name}.py"), *words]


def script(text: str) -> list[str]:
    """Write a script with a network, an optimizer and a step function, and return the command that runs it."""
    begin = """
import os, sys, torch
net = torch.nn.Linear(10, 10)
opt = torch.optim.SGD(net.parameters(), lr=0.1)
def step():
    net(torch.randn(4, 10)).mean().backward()
    opt.step()
"""
    Path("script.py").write_text(begin + text)
    return [sys.executable, "script.py"]


def failure(words: list[str], timeout: float = 60) -> ScriptError:
    with pytest.raises(ScriptError) as raised:
        predict_script(words, timeout=timeout)
    return raised.value


@pytest.mark.parametrize("name", NAMES)
def test_a_script_is_predicted_to_the_byte_and_leaves_no_file(name: str, folder: Path) -> None:
    predicted = predict_script(command(name), target="cpu")
    measured = measure_script(command(name))
    for kind in (
        "params",
        "grads",
        "optimizer",
        "workspace",
    ):  # tensors from a file can count as inputs or as activations
        assert predicted.peak.breakdown[kind] == measured.peak.breakdown[kind]
    assert predicted.peak.peak_allocated == measured.peak.peak_allocated > 0
    assert predicted.peak.iterations == measured.peak.iterations
    assert predicted.after_step == measured.after_step
    assert (predicted.steps, measured.steps) == (3, 3)
    assert bool(predicted.growth) == (name == "leaking")
    assert list(folder.iterdir()) == []


def test_a_script_on_cuda_has_the_same_peak_as_the_same_code_in_functions() -> None:
    def build():
        net = torch.nn.Linear(100, 1000).to("cuda")
        return net, torch.optim.SGD(net.parameters(), lr=0.1), [], []

    def step(state):
        net, optimizer, outputs, losses = state
        optimizer.zero_grad()
        outputs.append(net(torch.randn(64, 100, device="cuda")))
        losses.append(outputs[-1].square().mean())
        losses[-1].backward()
        optimizer.step()

    target = Target(torch="2.8.0", capacity=2**31, compute_capability=(8, 9))
    found = predict_script(command("leaking"), target=target)
    wanted = predict_peak(build, step, 3, target)
    assert (found.peak.peak_allocated, found.peak.needs) == (wanted.peak_allocated, wanted.needs)
    assert found.peak.breakdown == wanted.breakdown
    assert found.peak.fits is True


def test_tensors_are_where_the_script_puts_them() -> None:
    text = """
net = torch.nn.Linear(1000, 1000)  # 4 MB, then on the device
data = torch.randn(100, 1000, 1000)  # 400 MB, which stay on the host
net.cuda()
opt = torch.optim.SGD(net.parameters(), lr=0.1)
for block in data:
    assert not block.is_cuda
    block = block.cuda()
    assert block.is_cuda
    net(block).mean().backward()
    opt.step()
"""
    peak = predict_script(script(text), target=Target(torch="2.8.0")).peak
    assert peak.breakdown["params"] == 4_000_256 + 4096
    assert (
        4_000_000 <= peak.breakdown["inputs"] < 5_000_000
    )  # one block, with the rest that the allocator does not split off
    assert peak.host > 400_000_000


def test_lines_that_keep_memory_and_lines_that_read_made_up_values_are_named() -> None:
    leak = predict_script(command("leaking"), target="cpu")
    assert [(g.line.number, g.operator, g.bytes_per_step) for g in leak.growth if g.line] == [
        (12, "addmm", 64 * 1000 * 4),
        (14, "mean", 512),
    ]
    assert leak.after_step[2] - leak.after_step[1] == leak.after_step[1] - leak.after_step[0] == 256_512
    assert leak.holders[0].line
    assert leak.holders[0].line.file == str(SCRIPTS / "leaking.py")
    assert {h.module for h in leak.holders if h.kind == "params"} == {"weight", "bias"}
    guards = predict_script(command("guarded"), target="cpu").made_up
    assert {(m.line.number, m.branch and m.branch.number) for m in guards if m.line} == {(15, 15), (17, 17), (20, 21)}


def test_scripts_run_with_arguments_as_modules_and_under_torchrun(folder: Path) -> None:
    wide = predict_script(command("arguments", "--width", "64"), 1, "cpu").peak
    assert wide.breakdown["params"] >= 2 * 100 * 64 * 4  # the default width of 16 needs a quarter
    (folder / "package").mkdir()
    text = f"import runpy\nrunpy.run_path({str(SCRIPTS / 'arguments.py')!r}, run_name=__name__)\n"
    (folder / "package" / "train.py").write_text(text)
    module = predict_script([sys.executable, "-m", "package.train", "--width", "64"], 1, "cpu").peak
    assert (module.breakdown["params"], module.peak_allocated) == (wide.breakdown["params"], wide.peak_allocated)
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    words = "RANK LOCAL_RANK WORLD_SIZE MASTER_PORT"
    script(f"print(*(os.environ[n] for n in '{words}'.split()), sys.argv, __name__)\nstep()\n")
    made = predict_script([*run, "script.py", "--fast"], 1, "cpu")
    assert made.output.startswith("0 0 1 ")
    assert made.output.endswith("['script.py', '--fast'] __main__\n")
    assert any("several processes" in note for note in made.notes)


@pytest.mark.cold
def test_the_script_sees_the_same_paths_as_under_python(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "helper.py").write_text("import torch\nnet = torch.nn.Linear(3, 3)\n")
    text = "import os, sys, helper, torch\nprint(sys.path[0], os.getcwd(), sys.argv, __file__)\n"
    (folder / "sub" / "train.py").write_text(text + "torch.optim.SGD(helper.net.parameters()).step()\n")
    words = [sys.executable, "sub/train.py", "x"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert predict_script(words, 1, "cpu").output == said


def test_files_are_written_only_on_request(folder: Path) -> None:
    text = "os.makedirs('a/b')\nopen('a/b/c.txt', 'w').write('x')\nprint(open('a/b/c.txt').read())\nstep()\n"
    assert predict_script(script(text), 1, "cpu").output == "x\n"
    assert not (folder / "a").exists()
    predict_script(script(text), 1, "cpu", keep_files=True)
    assert (folder / "a" / "b" / "c.txt").read_text() == "x"


def test_a_process_that_loads_data_works_on_real_tensors() -> None:
    text = """
import multiprocessing
def load(queue):
    queue.put(torch.arange(4.0).square().sum().item())
queue = multiprocessing.get_context("fork").Queue()
worker = multiprocessing.get_context("fork").Process(target=load, args=(queue,))
worker.start()
print(queue.get())
worker.join()
step()
"""
    assert predict_script(script(text), 1, "cpu").output == "14.0\n"


def test_a_script_that_never_ends_is_stopped_after_its_last_step() -> None:
    stubborn = """
import atexit, signal, threading, time
atexit.register(time.sleep, 100)
threading.Thread(target=time.sleep, args=(100,)).start()
try:
    while True:
        try:
            step()
        except BaseException:
            print("never mind")
finally:
    time.sleep(100)
"""
    assert predict_script(script(stubborn), target="cpu", timeout=60).steps == 3


def test_a_script_with_too_few_steps_gives_a_prediction_with_a_note() -> None:
    found = predict_script(script("step()\nstep()\n"), target="cpu")
    assert found.steps == 2
    assert found.notes == ("the program took 2 of 3 optimizer steps: it ended by itself",)


@pytest.mark.parametrize(
    ("text", "said", "printed"),
    [
        ("print('nothing')", "ended without an optimizer step", "nothing"),
        (
            "step()\nraise KeyError('weights')",
            "raised an error after 1 optimizer step: script.py:9: KeyError",
            "Traceb",
        ),
        ("print('usage')\nsys.exit(2)", r"sys.exit\(2\) before its first optimizer step", "usage"),
        ("input('name? ')", "reads standard input before its first", "name"),
        ("import subprocess\nsubprocess.run(['true'])", r"other processes, .*\(true\)", "It printed nothing"),
        ("os.execv('/bin/true', ['true'])", "replaces its process", "Traceback"),
        pytest.param(
            "import ctypes\nctypes.string_at(0)",
            "crashed before its first .* SIGSEGV",
            "string_at",
            marks=pytest.mark.cold,
        ),
        ("os._exit(3)", "ended its process before its first optimizer step with exit code 3", "It printed nothing"),
        ("step()\nassert torch.randn(999).sum() != 1, 'odd'", "that depend on data, which", "AssertionError"),
        ("step()\nstep()\nstep()", "put nothing on the CUDA device", "It printed nothing"),
        (
            "import multiprocessing\np = multiprocessing.get_context('fork').Process(target=step)\np.start()\np.join()",
            "trains in a process that it starts",
            "It printed nothing",
        ),
        ("torch.multiprocessing.spawn(print, nprocs=4)", "starts 4 processes", "Traceback"),
    ],
)
def test_an_error_names_the_cause_and_quotes_the_last_output_of_the_script(text: str, said: str, printed: str) -> None:
    error = failure(script(text))
    assert error.args[0].count("\n") <= 13
    first, _, rest = str(error).partition("\n")
    assert re.search(said, first), first
    assert printed in rest


def test_notes_name_what_the_prediction_runs_differently_from_the_script(folder: Path) -> None:
    text = """
loader = torch.utils.data.DataLoader([torch.zeros(1 << 18)] * 5, 1, num_workers=3)
net = torch.nn.Linear(1 << 18, 1)
step, opt = torch.compile(net), torch.optim.SGD(net.parameters(), lr=0.1)
for _ in range(2):
    for x in loader:
        step(x).mean().backward()
        opt.step()
"""
    found = predict_script(script(text), 3, target="cpu")
    compiled, prefetched = found.notes
    assert "uses torch.compile, and the prediction ran the code uncompiled" in compiled
    assert "up to 4.0 MiB more" in prefetched  # four of five batches of 1 MiB; three workers may prefetch two each
    assert found.prefetched == 4 << 20
    measured = measure_script(script(text), 3)
    assert not measured.notes[1:]
    assert measured.peak.peak_allocated - measured.prefetched == found.peak.peak_allocated


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock is a part of Linux")
def test_writes_of_a_c_library_are_refused(folder: Path) -> None:
    text = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.fopen.restype = ctypes.c_void_p
version = libc.syscall(444, None, 0, 1)
for name in ("mine.txt", "new.txt"):
    print(version, libc.fopen(os.path.join(os.environ["HERE"], name).encode(), b"w"), ctypes.get_errno())
libc.fopen(b"/dev/null", b"w") or sys.exit("a device is no file")
step()
step()
step()
"""
    Path("mine.txt").write_text("mine")
    found = predict_script([f"HERE={Path.cwd()}", *script(text)], 3, target="cpu")
    if found.output.startswith("-1"):
        pytest.skip("this kernel has no Landlock")
    assert [line.split()[1:] for line in found.output.splitlines()] == [["None", "13"]] * 2  # permission denied
    assert Path("mine.txt").read_text() == "mine"
    assert not Path("new.txt").exists()


def test_a_timeout_is_reported_and_invalid_arguments_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the time limit may end before PyTorch is imported; the child still writes its report."""
    monkeypatch.setattr(prediction, "_GRACE", 600)
    error = failure(script("import time\ntime.sleep(100)"), timeout=1)
    assert re.search(r"no optimizer step within 1 s.*; set a larger --timeout", str(error))
    with pytest.raises(ValueError, match="at least one optimizer step"):
        predict_script(["x.py"], 0)
    with pytest.raises(ValueError, match="target must be"):
        predict_script(["x.py"], target="cuda")  # type: ignore[arg-type]


def test_the_time_limit_message_says_how_far_the_program_came() -> None:
    report = RunReport("timeout", "train.py:9", 2, Timeline())
    how = "within 60 s and was at train.py:9; set a larger --timeout"
    assert prediction._fewer_steps(report, 3, 60) == f"the program took 2 of 3 optimizer steps {how}"
    with pytest.raises(ScriptError, match=f"the program took no optimizer step {how}"):
        prediction._raise_if_failed(replace(report, steps=0), 60, "")


def test_the_line_of_another_thread_is_found() -> None:
    inside, leave = threading.Event(), threading.Event()

    def wait() -> None:
        inside.set()
        leave.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    inside.wait()
    found = lines.current_line(sys._current_frames()[thread.ident or 0])
    leave.set()
    thread.join()
    assert found is not None
    assert (found.file, found.number - wait.__code__.co_firstlineno) in ((__file__, 1), (__file__, 2))


@pytest.mark.cold
def test_the_child_ends_with_its_parent(folder: Path) -> None:
    script("open('pid', 'w').write(str(os.getpid()))\nimport time\ntime.sleep(100)")
    call = "predict_script([sys.executable, 'script.py'], keep_files=True)"
    code = f"import sys\nfrom ppdm_bench import predict_script\n{call}"
    for number in (signal.SIGINT, signal.SIGKILL):
        Path("pid").unlink(missing_ok=True)
        parent = subprocess.Popen([sys.executable, "-c", code], env=os.environ, stderr=subprocess.DEVNULL)
        assert wait_until(lambda: Path("pid").exists() and Path("pid").read_text() != "")
        parent.send_signal(number)
        parent.wait()
        child = int(Path("pid").read_text())
        assert wait_until(lambda child=child: not Path(f"/proc/{child}").exists())


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process stands in a file of Linux")
def test_a_prediction_of_a_large_model_takes_little_memory() -> None:
    text = """
net = torch.nn.Sequential(*(torch.nn.Linear(16384, 16384, bias=False) for _ in range(20))).cuda()
opt = torch.optim.AdamW(net.parameters())
net(torch.randn(8, 16384, device="cuda")).mean().backward()
opt.step()
"""
    # Not ru_maxrss, because a process inherits it from its parent.
    ending = "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\nopt.step()\n"
    found: ScriptPrediction = predict_script(script(text + ending), 2, timeout=120)
    assert found.peak.breakdown["params"] == 20 * 2**30
    assert found.peak.peak_allocated > 80 * 2**30
    assert int(found.output) < 2 * 2**20  # KiB
