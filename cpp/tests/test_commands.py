"""dyvit-run and dyvit-bench on the command line: exit codes, messages on stderr, JSON on the last line."""
import json
import os
import resource
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

PROGRAMS, REFERENCE, FAKE_BENCH = (Path(sys.argv.pop(1)) for _ in range(3))
SKIPPED = 77
MODEL, SCENE = REFERENCE / "digits-float32.onnx", REFERENCE / "scene0.png"


def call(program, *arguments, **more):
    return subprocess.run([PROGRAMS / program, *arguments_of(arguments)], capture_output=True, text=True, **more)


def arguments_of(values):
    return [value if isinstance(value, bytes) else str(value) for value in values]


class Commands(unittest.TestCase):
    def test_run_prints_the_most_probable_classes_per_image(self):
        done = call("dyvit-run", MODEL, SCENE, REFERENCE / "scene1.png", "--top", 3, "--kept", "--threads", 1)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        lines = done.stdout.splitlines()
        self.assertEqual(len(lines), 2 * (1 + 3 + 3))
        self.assertEqual(lines[0], str(SCENE))
        self.assertGreater(float(lines[1].split()[0]), float(lines[2].split()[0]))
        self.assertEqual(len(lines[4].split(": ")[1].split()), 44)

    def test_a_broken_image_among_several_is_named_and_the_others_go_on(self):
        done = call("dyvit-run", MODEL, REFERENCE / "cut.jpg", SCENE)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"^dyvit-run: .*cut\.jpg is damaged or cut short \(.*\n$")
        self.assertTrue(done.stdout.startswith(str(SCENE)))

    def test_the_exif_orientation_is_applied_on_request(self):
        upright, ignored, applied = (
            call("dyvit-run", MODEL, *arguments).stdout.splitlines()[1:]
            for arguments in ([SCENE], [REFERENCE / "turned.png"], [REFERENCE / "turned.png", "--orient"]))
        self.assertTrue(upright == applied != ignored)

    def test_a_known_error_is_one_line_and_exit_code_1(self):
        for program, more in (("dyvit-run", [SCENE]), ("dyvit-bench", [])):
            done = call(program, "missing.onnx", *more)
            self.assertEqual((done.returncode, done.stdout), (1, ""))
            self.assertEqual(done.stderr, f"{program}: missing.onnx does not exist; check the path.\n")

    def test_wrong_usage_is_exit_code_2(self):
        for arguments in ([], [MODEL], [MODEL, SCENE, "--top", "0"], [MODEL, SCENE, "--provider", "gpu"],
                          [MODEL, SCENE, "--no-such"]):
            self.assertEqual(call("dyvit-run", *arguments).returncode, 2)
        self.assertEqual(call("dyvit-bench", MODEL, "--batch", "0").returncode, 2)

    def test_bench_ends_with_json_whose_keys_have_units(self):
        done = call("dyvit-bench", MODEL, "--batch", "1,4", "--threads", "1", "--seconds", "0.1")
        self.assertEqual(done.returncode, 0, done.stderr)
        report = json.loads(done.stdout.splitlines()[-1])
        self.assertEqual([row["batch"] for row in report["timings"]], [1, 4])
        for row in report["timings"]:
            self.assertLessEqual(row["latency_ms_p50"], row["latency_ms_p99"])
            self.assertAlmostEqual(row["images_per_sec"], 1000 * row["batch"] / row["latency_ms_p50"])

    def test_bench_says_whether_transfers_are_timed(self):
        plan = REFERENCE / "fake.plan"
        plan.write_text("ftrt")
        timed = {(): ("from host memory to host memory", True),
                 ("--no-transfers",): ("on the GPU, without transfers", False)}
        for arguments, (words, transfers) in timed.items():
            done = call(FAKE_BENCH, plan, "--batch", "2,4", "--seconds", "0.01", *arguments)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            lines = done.stdout.splitlines()
            self.assertEqual(lines[0], f"{plan}, float16, TensorRT for RTX cuda, {words}")
            self.assertIs(json.loads(lines[-1])["transfers"], transfers)
        for option in ("--no-transfers", "--allow-cpu-fallback"):
            self.assertIn(option, call("dyvit-bench", "--help").stdout)

    def test_bench_refuses_to_leave_out_the_transfers_of_an_onnx_file(self):
        done = call("dyvit-bench", MODEL, "--no-transfers")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertRegex(done.stderr, r"^dyvit-bench: digits-float32\.onnx runs with ONNX Runtime .* cpu, which takes "
                                      r"and gives host memory, .*; time it with transfers, .*\.\n$")

    def test_bench_refuses_a_batch_that_the_artifact_does_not_take(self):
        for batch in ("1", "2,65536"):
            done = call("dyvit-bench", REFERENCE / "fixed.onnx", "--batch", batch)
            self.assertEqual((done.returncode, done.stdout), (1, ""))
            self.assertRegex(done.stderr, r"^dyvit-bench: .* takes from 2 to 2 images at once, not \d+; .*\.\n$")

    def test_bench_reports_a_path_that_is_not_utf8_in_json_that_is(self):
        path = os.fsencode(REFERENCE) + b"/not-utf8-\xff.onnx"
        shutil.copyfile(MODEL, path)
        done = call("dyvit-bench", path, "--seconds", "0.01", errors="surrogateescape")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertTrue(json.loads(done.stdout.splitlines()[-1])["artifact"].endswith("not-utf8-\ufffd.onnx"))

    def test_too_little_memory_is_one_line_and_exit_code_1(self):
        if b"__asan_init" in (PROGRAMS / "dyvit-bench").read_bytes():
            self.skipTest("the address sanitizer ends the program itself")
        # In bytes; the batch alone has 3 GiB.
        limit = 2 << 30
        done = call("dyvit-bench", MODEL, "--batch", "65536", "--threads", "1",
                    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
        self.assertEqual((done.returncode, done.stderr),
                         (1, "dyvit-bench: Not enough memory; use a smaller --batch.\n"))

    @unittest.skipUnless(os.path.exists("/dev/full"), "there is no /dev/full")
    def test_output_that_cannot_be_written_is_one_line_and_exit_code_1(self):
        for program, arguments in (("dyvit-run", [MODEL, SCENE]), ("dyvit-run", ["--help"]),
                                   ("dyvit-bench", [MODEL, "--seconds", "0.01"])):
            with self.subTest(program=program, arguments=arguments), open("/dev/full", "w") as full:
                done = subprocess.run([PROGRAMS / program, *arguments], stdout=full, stderr=subprocess.PIPE, text=True)
                self.assertEqual(done.returncode, 1)
                self.assertRegex(done.stderr, rf"^{program}: The output could not be written to its end; .*\.\n$")


if __name__ == "__main__":
    if not MODEL.exists() or not os.access(PROGRAMS / "dyvit-run", os.X_OK):
        print("skipped: there is no reference data; see the test 'reference' for the reason.")
        sys.exit(SKIPPED)
    unittest.main()
