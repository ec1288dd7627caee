"""What compiled programs are said to do; compilation itself needs packages that are not here."""

import json
import sys

import pytest

from benchmarks import accelerator_tables as tables
from benchmarks import accelerators, flags, hlo, models, pages
from detlab import errors

# A step as XLA prints it for a GPU, shortened: two convolutions, one of them in float32, a product,
# a transposed map and a transposed kernel, a loop of 100 rounds around one of unknown length, the
# sum of a gradient, and a gathered map.
GPU = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[3,3,64,64]{3,2,1,0})->f32[]}

FileNames
1 "/home/x/detlab/ops/nms.py"
2 "/lib/jax/lax.py"

FunctionNames
1 "nms"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=4 end_column=40}
2 {file_name_id=2 function_name_id=1 line=9 end_line=9 column=4 end_column=40}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}
3 {file_location_id=2 parent_frame_id=3}

%dot_computation (p: bf16[64,64], q: bf16[64,64]) -> f32[64,64] {
  %p = bf16[64,64]{1,0} parameter(0)
  %q = bf16[64,64]{1,0} parameter(1)
  ROOT %dot.1 = f32[64,64]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%inner_body (s.1: f32[64]) -> f32[64] {
  %s.1 = f32[64]{0} parameter(0)
  ROOT %sum.1 = f32[64]{0} all-reduce(%s.1), replica_groups={{0,1}}, to_apply=%add
}

%condition (s.2: f32[64]) -> pred[] {
  %s.2 = f32[64]{0} parameter(0)
  ROOT %true = pred[] constant(true)
}

%outer_body (s.3: f32[64]) -> f32[64] {
  %s.3 = f32[64]{0} parameter(0)
  ROOT %w.1 = f32[64]{0} while(%s.3), condition=%condition, body=%inner_body, \
metadata={op_name="jit(step)/while" stack_frame_id=2}
}

ENTRY %main (x: bf16[8,128,128,64], k: f32[3,3,64,64]) -> (f32[], f32[64]) {
  %x = bf16[8,128,128,64]{3,2,1,0} parameter(0)
  %y = f32[8,128,128,64]{3,2,1,0} convert(%x)
  %k = f32[1024,3,3,64]{3,2,1,0} parameter(1)
  %turned = bf16[8,64,128,128]{3,2,1,0} transpose(%x), dimensions={0,3,1,2}
  %same = bf16[8,128,64,128]{2,1,3,0} transpose(%x), dimensions={0,2,3,1}
  %kt = f32[3,3,64,1024]{3,2,1,0} transpose(%k), dimensions={1,2,3,0}
  %kc = f32[1024,3,3,64]{3,2,1,0} copy(%k)
  %c.1 = (bf16[8,128,128,64]{3,2,1,0}, u8[0]{0}) custom-call(%x, %kt), window={size=3x3}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %c.2 = (f32[3,3,64,64]{3,2,1,0}, /*index=1*/u8[99]{0}) custom-call(%y, %y), \
custom_call_target="__cudnn$convBackwardFilter"
  %fusion = f32[64,64]{1,0} fusion(%x, %x), kind=kCustom, calls=%dot_computation, \
backend_config={"fusion_backend_config":{"kind":"__triton_gemm"}}
  %w.2 = f32[64]{0} while(%s), condition=%condition, body=%outer_body, \
metadata={op_name="jit(step)/while" stack_frame_id=1}, \
backend_config={"known_trip_count":{"n":"100"}}
  %sum = (f32[3,3,64,64]{3,2,1,0}, f32[64]{0}) all-reduce-start(%a, %b), to_apply=%add
  %done = (f32[3,3,64,64]{3,2,1,0}, f32[64]{0}) all-reduce-done(%sum)
  %g = (bf16[2,64,64,64]{3,2,1,0}, bf16[8,64,64,64]{3,2,1,0}) all-gather-start(%c), dimensions={0}
  %told = () custom-call(%w.2), custom_call_target="xla_ffi_python_gpu_callback"
  ROOT %out = (f32[], f32[64]{0}) tuple(%l, %w.2)
}
"""
WEIGHTS = [(3, 3, 64, 1024), (64,)]


@pytest.fixture(scope="module")
def program():
    return hlo.parse(GPU)


def test_types_have_sizes_and_dimensions():
    one, two = hlo.arrays("(bf16[8,1,3]{2,1,0:T(8,128)(2,1)S(1)}, /*index=1*/pred[5], token[])")
    assert one == hlo.Array("bf16", (8, 1, 3), (2, 1, 0)) and two.shape == (5,)
    assert (one.bytes, two.bytes, one.dimensions) == (48, 5, (3, 8))
    assert hlo.arrays("s4[4]{0}")[0].bytes == 2 and hlo.arrays("f32[]")[0].bytes == 4


def test_calls_are_counted_by_kind_and_type(program):
    assert hlo.calls(program) == {
        "convolution forward bf16": 1,
        "convolution kernel gradient f32": 1,
        "product bf16": 1,
        "xla_ffi_python_gpu_callback": 1,
    }


def test_convolutions_of_a_tpu_are_told_apart_by_the_names_that_jax_gave():
    text = """\
%fused (x: bf16[2,64,64,8]) -> f32[8] {
  %x = bf16[2,64,64,8]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %a = bf16[2,64,64,8]{3,2,1,0} convolution(%x, %x), \
metadata={op_name="jit(f)/conv_general_dilated"}
  %b = bf16[2,64,64,8]{3,2,1,0} convolution(%x, %x), \
metadata={op_name="jit(f)/transpose(jvp())/conv_general_dilated"}
  ROOT %c = f32[8]{0} convolution(%x, %x), metadata={op_name="jit(f)/dot_general"}
}
"""
    assert hlo.calls(hlo.parse(text)) == {
        "convolution forward bf16": 1,
        "convolution gradient bf16": 1,
        "product bf16": 1,
    }


def test_moves_of_maps_and_of_weights_are_apart_and_other_names_of_axes_are_none(program):
    found = hlo.moves(program, {hlo.Array("", shape, ()).dimensions for shape in WEIGHTS})
    unknown = {"unknown": 1}
    assert found == {
        "transposed activations": {"count": 1, "mib": 16.0, "from": unknown},
        "transposed weights": {"count": 1, "mib": 2.2, "from": unknown},
        "copied weights": {"count": 1, "mib": 2.2, "from": unknown},
    }


def test_a_copy_into_another_order_is_a_transpose():
    text = """\
ENTRY %main (x: f32[1,512,1024]) -> f32[1,512,1024] {
  %x = f32[1,512,1024]{2,1,0} parameter(0)
  %a = f32[1,512,1024]{1,2,0} copy(%x)
  ROOT %b = f32[1,512,1024]{2,0,1} copy(%x)
}
"""
    found = hlo.moves(hlo.parse(text), set())
    assert {kind: row["count"] for kind, row in found.items()} == {
        "copied activations": 1,  # the axis of length one does not count
        "transposed activations": 1,
    }


def test_loops_are_counted_by_rounds_and_by_the_file_that_asked_for_them(program):
    assert hlo.loops(program) == {"known": {"100 x ops/nms.py": 1}, "unknown": {"ops/nms.py": 100}}


def test_exchanges_count_bytes_of_results_and_rounds_of_loops(program):
    gradient, small = 3 * 3 * 64 * 64 * 4, 64 * 4
    assert hlo.exchanges(program) == {
        "all-reduce": {
            "count": 2,
            "bytes": gradient + small + 100 * small,
            "in_loops": 1,
            "largest": gradient + small,
        },
        "all-gather": {"count": 1, "bytes": 2**22, "in_loops": 0, "largest": 2**22},
    }


def test_what_talks_to_the_host_is_counted(program):
    assert hlo.to_host(program) == {"xla_ffi_python_gpu_callback": 1}
    text = "ENTRY %m (x: f32[]) -> f32[] {\n  %s = f32[] send(%x), is_host_transfer=true\n}\n"
    assert hlo.to_host(hlo.parse(text)) == {"send": 1}


# Rows


def row(**values):
    seconds = {"s": 10.0, "cpu_s": 12.0}
    size = {"argument_gib": 0.5, "temporary_gib": 2.0, "total_gib": 2.5, "parameter_bytes": 10**6}
    name = {"model": "fcos", "program": "train", "dtype": "bfloat16", "devices": 1, "images": 8}
    base = {**name, **size, "lower": seconds, "compile": seconds, "canvas": [800, 1344]}
    base |= {"batch": "usual", "status": "compiled"}
    return {**base, **hlo.report(GPU, WEIGHTS), **values}


CLEAN = {
    "calls": {"convolution forward bf16": 5, "convolution input gradient bf16": 3},
    "moves": {"transposed weights": {"count": 1, "mib": 2.0, "from": {}}},
    "loops": {"known": {"100 x assign/max_iou.py": 1}, "unknown": {}},
    "exchanges": {"all-reduce": {"count": 2, "bytes": 10**6, "in_loops": 0, "largest": 10**6}},
    "to_host": {},
}


def test_findings_are_named_and_a_program_without_any_has_none():
    assert tables.findings(row(**CLEAN)) == []
    assert tables.findings(row()) == [
        "1 convolution kernel gradient f32",
        "transposed activations: 1, 16 MiB (unknown 1)",
        "loops of unknown length: ops/nms.py 100",
        "all-gather: 4 MiB",
        "1 all-reduce in loops",
        "to the host: 1 xla_ffi_python_gpu_callback",
    ]
    assert "f32" not in " ".join(tables.findings(row(dtype="float32")))
    exchanged = {"all-reduce": CLEAN["exchanges"]["all-reduce"] | {"bytes": 2_500_000}}
    many = row(**{**CLEAN, "exchanges": exchanged})
    assert tables.findings(many) == ["all-reduce of 2.50 times the parameters"]
    assert tables.findings(row(status="failed", reason="no room")) == ["failed: no room"]


def test_the_largest_batch_follows_from_two():
    """4 images take 6 GiB and 8 take 10: 2 GiB and 1 GiB an image."""
    rows = [row(total_gib=10.0), row(total_gib=6.0, images=4, batch="half")]
    memory = tables.memory_line(rows)
    assert memory == (2.0, 1.0) and memory.at(20) == 22.0
    assert [memory.largest(x) for x in (1.0, 2.5, 3.0, 12.9)] == [0, 0, 1, 10]
    assert tables.memory_line(rows[:1]) is None
    given = row(total_gib=22.5, images=20, batch="given")
    text = tables.batches([*rows, given, given | {"canvas": [64, 64]}])
    # 0.9 of 16, 24, 80 and 141 GiB
    last = "| fcos | 2.00 + 1.000 an image | 12 | 19 | 70 | 124 | 20: 22.0, 22.5 |"
    assert text.splitlines()[-1] == last


def test_rows_stand_in_tables_of_the_page(tmp_path):
    mesh = row(**CLEAN, devices=4)
    rows = [row(**CLEAN), row(**CLEAN, program="predict", status="failed", reason="no room"), mesh]
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    path = folder / "accelerators_cuda_jax0.10.2.json"
    path.write_text(json.dumps({"rows": dict(enumerate(rows))}))
    text = pages.accelerators(tmp_path)
    assert text.startswith("### NVIDIA H200, jax 0.10.2\n\n| detector |")
    assert "| fcos | 8 x 800x1344 | 20 | 2.5 |  | 5 + 3 | failed |  |  |  |" in text
    assert "| fcos/train | bfloat16 | 4 | 1.0 MiB | 1.0 MiB in 2 | nothing | 2.5 |" in text
    assert text.endswith("| failed: no room | fcos/predict (bfloat16, 1) |")


# The command


def asked(*words):
    return [
        task.name
        for task in accelerators.tasks(
            flags.accelerators("").parse_args(["--platform", "cuda", *words])
        )
    ]


def test_every_detector_is_compiled_in_both_types_and_on_a_mesh():
    found = asked()
    assert len(found) == len(set(found))
    for model in models.MODELS:
        size = accelerators.size_of("cuda", model)
        for program in ("train", "predict"):
            own = [x.split() for x in found if x.startswith(f"{model}/{program} ")]
            kinds = {(dtype, place) for _, _, dtype, place in own}
            for dtype in ("bfloat16", "float32"):
                for devices in (1, 4):
                    assert (dtype, f"{devices}x{size.images}") in kinds
    assert len([x for x in found if "/accumulate" in x and "bfloat16 1x" in x]) >= 3


def test_the_flags_choose_programs_sizes_and_batches():
    words = ("--dtype", "bfloat16", "--devices", "1")
    assert asked(*words, "--only", "retinanet/train") == [
        "retinanet/train 800x1344 bfloat16 1x8",
        "retinanet/train 800x1344 bfloat16 1x4",
    ]
    assert asked(*words, "--only", "gfl/accumulate", "--batch", "6", "--side", "256") == [
        "gfl/accumulate 256x256 bfloat16 1x6"
    ]
    with pytest.raises(errors.UserError, match="--only retinanet/trian: .*retinanet/train"):
        asked("--only", "retinanet/trian")
    with pytest.raises(errors.UserError, match="must be positive"):
        asked("--devices", "0")


def test_programs_have_the_settings_of_the_experiment_and_of_the_task():
    task = accelerators.Task(
        "cuda", "cornernet", "accumulate", (511, 511), "bfloat16", 4, 2, "usual"
    )
    config = accelerators.config_of(task)
    assert (config.train.batch_size, config.train.accumulate, config.model.dtype) == (
        8,
        2,
        "bfloat16",
    )
    assert config.data.canvases == ((511, 511),) and not config.data.multiscale_canvases
    assert config.optim.ema_decay == 0.999
    config = accelerators.config_of(task._replace(model="darknet_yolov4", program="train"))
    assert (config.train.accumulate, config.optim.ema_decay) == (1, 0.0)


def test_missing_packages_are_one_sentence_with_the_command(monkeypatch):
    monkeypatch.setattr(accelerators.importlib.metadata, "version", {"jax": "1.2"}.get)
    monkeypatch.setattr(accelerators, "_installed", lambda name, wanted: name == "nvidia-cublas")
    with pytest.raises(errors.UserError) as raised:
        accelerators.check_packages("cuda")
    said = str(raised.value)
    command = "pip install --no-deps --target compilers jax-cuda13-plugin==1.2 jax-cuda13-pjrt==1.2"
    assert command in said and "nvidia-cublas" not in said and "PYTHONPATH=compilers" in said
    monkeypatch.setattr(accelerators.importlib.metadata, "requires", lambda name: ["libtpu==3.4.*"])
    with pytest.raises(errors.UserError, match=r"--target compilers libtpu==3\.4\.\*; then"):
        accelerators.check_packages("tpu")


@pytest.mark.parametrize(
    ("wanted", "there"), [(None, True), ("0.4", False), ("0.4.1", True), ("0.4.*", True)]
)
def test_a_package_is_there_in_the_wanted_version(wanted, there, monkeypatch):
    monkeypatch.setattr(accelerators.importlib.metadata, "version", {"libtpu": "0.4.1"}.get)
    assert accelerators._installed("libtpu", wanted) is there
    monkeypatch.undo()
    assert not accelerators._installed("no-such-package", None)


def test_a_process_that_is_slow_or_fails_becomes_a_row():
    def run(text, minutes=1.0):
        return accelerators.outcome([sys.executable, "-c", text], {}, minutes)

    assert run('print("noise"); print(\'{"a": 1}\')') == {"status": "compiled", "a": 1}
    slow = run("import time; time.sleep(60)", 0.005)
    assert slow["status"] == "not through in 0.005 minutes" and slow["cpu_s"] < 30
    failed = run("raise ValueError('no tile sizes')")
    assert failed == {"status": "failed", "reason": "ValueError: no tile sizes"}
    line = "F0000 00:00:17.5    99 tiling.cc:123] Check failed: a == b (1 vs. 2)"
    aborts = f"import os, sys; print({line!r}, file=sys.stderr, flush=True); os.abort()"
    reason = "ended by SIGABRT: tiling.cc:123] Check failed: a == b (1 vs. 2)"
    assert run(aborts) == {"status": "failed", "reason": reason}
