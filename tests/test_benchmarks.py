"""Every benchmark that needs no peers runs as a user would run it, only smaller."""

import json

from scripts import ROOT, load, run


def test_benchmark_runs_without_peers(tmp_path):
    output = run(
        *(ROOT / "benchmarks" / "dropout.py", "--quick", "--peers"),
        *("--json", tmp_path / "cpu.json", "--figure", tmp_path / "cpu.png"),
    ).stdout
    assert "jaxdrop" in output
    assert (tmp_path / "cpu.json").exists()
    assert (tmp_path / "cpu.png").exists()


def test_benchmark_of_attention_runs(tmp_path):
    lengths = ("--length", "128", "--lengths", "64", "128", "--long", "256")
    printed = run(
        *(ROOT / "benchmarks" / "attention.py", "--rounds", "2", "--dtypes", "float32"),
        *(*lengths, "--out", tmp_path / "attention"),
    ).stdout
    found = json.loads((tmp_path / "attention.json").read_text())
    for name in ("flax.linen, dropout", "jax.nn, no dropout", "jaxdrop, dropout"):
        assert f"| {name} |" in printed
        assert found["times"]["float32"]["gradient"][name]["median_ms"] > 0
    assert found["long"]["temporary_mib"] > 0
    assert (tmp_path / "attention.png").exists()


def test_benchmark_of_the_memory_limit_runs_without_peers(tmp_path):
    printed = run(
        *(ROOT / "benchmarks" / "memory_limit.py", "--quick", "--peers"),
        *("--out", tmp_path / "memory_limit"),
    ).stdout
    found = json.loads((tmp_path / "memory_limit.json").read_text())
    assert "| in context, forward + backward, bfloat16 | 64 K | 0.1 |" in printed
    assert found["copy"]["gb_per_s"] > 0
    assert all(record["median_ms"] > 0 for record in found["workloads"])
    steps = [record["candidate"] for record in found["transformer"]["steps"]]
    assert steps == ["no dropout", "jaxdrop", "jaxdrop, weights in memory"]
    assert (tmp_path / "memory_limit.png").exists()


def test_programs_are_examined(tmp_path):
    run(
        *(ROOT / "benchmarks" / "programs.py", "--elements", str(2**20), "--peers"),
        *("--attention", "1", "64", "2", "8", "--out", tmp_path / "programs.json"),
    )
    found = json.loads((tmp_path / "programs.json").read_text())["programs"]
    alone = {r["candidate"]: r for r in found if r["program"] == "forward, rate 0.1"}
    assert alone["jaxdrop"]["threefry_blocks"] == 2**20 // 4
    assert alone["x * 2"]["kernels_started"] == 1
    assert alone["x * 2"]["moved_mib"] == alone["x * 2"]["must_move_mib"] == 4


def test_benchmark_of_compile_time_runs(tmp_path):
    printed = run(
        *(ROOT / "benchmarks" / "compile_time.py", "--sites", "1", "2", "--rates", "0.5"),
        *("--rounds", "1", "--out", tmp_path / "compile_time"),
    ).stdout
    found = json.loads((tmp_path / "compile_time.json").read_text())["cases"]
    assert [(case["sites"], case["way"]) for case in found] == [
        (sites, way) for sites in (1, 2) for way in ("forward", "gradient")
    ]
    assert all(case["jaxdrop"]["processor_seconds"] > 0 for case in found)
    assert "| 2 | gradient | 0.5 |" in printed
    assert (tmp_path / "compile_time.png").exists()


def test_benchmark_of_left_out_layers_runs(tmp_path):
    printed = run(
        *(ROOT / "benchmarks" / "layer_drop.py", "--quick", "--rounds", "2"),
        *("--json", tmp_path / "layer_drop.json"),
    ).stdout
    cases = json.loads((tmp_path / "layer_drop.json").read_text())["cases"]
    for case in cases:
        assert f"| {case['case']} |" in printed
        assert case["layer_drop"]["clock"] > 0


def test_share_of_a_step_with_half_of_the_layers_is_what_was_measured():
    measured = json.loads((ROOT / "benchmarks/results/layer_drop.json").read_text())["cases"]
    forward, checkpointed, plain = (case["ratio"] for case in measured)
    assert forward["processors"] < checkpointed["processors"] < 0.6
    readme = (ROOT / "benchmarks/README.md").read_text()
    assert f"takes {forward['processors']} of the full one forward" in readme
    assert f"and {checkpointed['processors']} with its gradient" in readme
    assert f"on the clock {forward['clock']} and {checkpointed['clock']}, on" in readme
    assert f"Without `jax.checkpoint` it is {plain['processors']}: " in readme


PROGRAM = """
%fused (p0: f32[8,4], p1: s32[]) -> f32[2,4] {
  %p0 = f32[8,4]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %part = f32[2,4]{1,0} dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={2,4}
}

%update (p0.1: f32[8,4], p1.1: f32[2,4], p2.1: s32[]) -> f32[8,4] {
  %p0.1 = f32[8,4]{1,0} parameter(0)
  %p1.1 = f32[2,4]{1,0} parameter(1)
  %p2.1 = s32[] parameter(2)
  ROOT %new = f32[8,4]{1,0} dynamic-update-slice(%p0.1, %p1.1, %p2.1, %p2.1)
}

%body (state: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %state = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%state), index=1
  %rows = f32[2,4]{1,0} fusion(%x, %i), kind=kLoop, calls=%fused
  %y = f32[8,4]{1,0} fusion(%x, %rows, %i), kind=kLoop, calls=%update
  ROOT %next = (s32[], f32[8,4]{1,0}) tuple(%i, %y)
}

ENTRY %main (x.1: f32[8,4]) -> (s32[], f32[8,4]) {
  %x.1 = f32[8,4]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,4]{1,0}) tuple(%zero, %x.1)
  ROOT %end = (s32[], f32[8,4]{1,0}) while(%start), body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
}
"""


def test_kernels_of_a_loop_count_as_often_as_it_runs_and_slices_as_parts():
    kernels = load(ROOT / "benchmarks" / "common" / "compiled.py").Program(PROGRAM).kernels()
    assert [(k.name, k.runs, k.read, k.written) for k in kernels] == [
        ("rows", 3, 32 + 4, 32),
        ("y", 3, 0 + 32 + 4, 32),
    ]


REPORT = """
ptxas info    : Compiling entry function 'attention_forward' for 'sm_90a'
ptxas info    : Function properties for attention_forward
    88 bytes stack frame, 64 bytes spill stores, 92 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 88 bytes cumulative stack size
ptxas info    : Compiling entry function 'loop_fusion' for 'sm_90a'
ptxas info    : Function properties for loop_fusion
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 16 registers, used 0 barriers
"""


def test_registers_and_spills_are_read_from_the_report_of_the_assembler():
    found = load(ROOT / "benchmarks" / "common" / "assembled.py").kernels_in(REPORT)
    assert list(found) == [
        {"kernel": "attention_forward", "registers": 255, "spilled_bytes": 64},
        {"kernel": "loop_fusion", "registers": 16, "spilled_bytes": 0},
    ]
