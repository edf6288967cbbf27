"""The same image, the same request, at every level: what a person may rely on, through the command."""

import json
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

LEVELS = ("container", "microvm")


@pytest.fixture(scope="module", params=LEVELS)
def level(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def box(layer, level: str):
    """One long-lived instance a level, shared by the tests that leave it as it was."""
    name = f"box-{level}"
    layer.lamella(
        "run", "-d", "--isolation", level, "--name", name, "--cpu", "1", "--memory", "192MiB", "--network", "default",
        "-e", "GREETING=hello there", "-l", "role=test", "busybox", "--",
        "sh", "-c", "echo out; echo err >&2; trap 'exit 5' TERM; while :; do sleep 0.2; done",
    )  # fmt: skip
    layer.wait_phase(name, "running")
    yield name
    layer.lamella("rm", "--force", name)


def test_run_gives_the_command_s_output_and_exit_code(layer, level: str) -> None:
    done = layer.lamella(
        "run", "--rm", "--isolation", level, "busybox", "--", "sh", "-c", "echo out; echo err >&2; exit 9", check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (9, b"out\n", b"err\n")


def test_run_carries_stdin_and_all_of_a_large_output(layer, level: str) -> None:
    data = bytes(range(256)) * 4096 * 4
    done = layer.lamella("run", "--rm", "-i", "--isolation", level, "busybox", "--", "md5sum", stdin=data)
    import hashlib

    assert done.stdout.split()[0].decode() == hashlib.md5(data).hexdigest()
    done = layer.lamella(
        "run", "--rm", "--isolation", level, "busybox", "--", "sh", "-c", "yes 0123456789abcde | head -c 16777216"
    )
    assert len(done.stdout) == 16 << 20 and set(done.stdout.split(b"\n")[:-1]) == {b"0123456789abcde"}


def test_a_command_that_is_not_there_or_may_not_be_run_is_said_as_docker_does(layer, level: str) -> None:
    for command, code in (("/no/such", 127), ("/etc/passwd", 126)):
        done = layer.lamella("run", "--rm", "--isolation", level, "busybox", "--", command, check=False)
        assert done.returncode == code and command.rsplit("/", 1)[-1].encode() in done.stderr, done
    layer.lamella(
        "run", "-d", "--isolation", level, "--name", f"absent-{level}", "busybox", "--", "/no/such", check=False
    )
    assert layer.wait_phase(f"absent-{level}", "stopped")["status"]["exit_code"] == 127
    assert "127" in layer.out("explain", f"absent-{level}")
    layer.lamella("rm", f"absent-{level}")
    assert f"absent-{level}" not in layer.out("ps", "-a", "-o", "name")


def test_the_kernel_is_shared_or_not_as_the_level_says(layer, level: str, box: str) -> None:
    inside = layer.out("exec", box, "--", "uname", "-r").strip()
    outside = subprocess.run(["uname", "-r"], capture_output=True, text=True, check=True).stdout.strip()
    assert (inside == outside) == (level == "container")


def test_exec_has_streams_exit_code_environment_directory_and_user(layer, box: str) -> None:
    done = layer.lamella("exec", box, "--", "sh", "-c", "echo o; echo e >&2; exit 7", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"o\n", b"e\n")
    assert layer.out("exec", box, "--", "sh", "-c", "echo $GREETING") == "hello there\n"
    assert layer.out("exec", "-e", "X=1 2", "-w", "/tmp", box, "--", "sh", "-c", "echo $X $PWD") == "1 2 /tmp\n"
    assert layer.out("exec", "-u", "app", box, "--", "id", "-u") == "1000\n"
    assert layer.out("exec", "-i", box, "--", "cat", stdin=b"in\0put") == "in\0put"
    assert layer.lamella("exec", box, "--", "/no/such/program", check=False).returncode == 127
    assert layer.lamella("exec", box, "--", "/etc/passwd", check=False).returncode == 126
    assert layer.lamella("exec", "--timeout", "0.5s", box, "--", "sleep", "30", check=False).returncode == 124


def test_the_instance_s_own_output_is_in_its_log(layer, box: str) -> None:
    done = layer.lamella("logs", box)
    assert b"out\n" in done.stdout and b"err\n" in done.stderr + done.stdout


def test_files_go_in_and_out(layer, box: str, tmp_path: Path) -> None:
    source = tmp_path / "tree"
    (source / "deep").mkdir(parents=True)
    (source / "a").write_bytes(b"a" * 100_000)
    (source / "deep" / "b").write_bytes(b"\0\xff")
    (source / "a").chmod(0o640)
    layer.lamella("cp", str(source), f"{box}:/tmp/")
    assert layer.out("exec", box, "--", "sh", "-c", "wc -c < /tmp/tree/a; stat -c %a /tmp/tree/a") == "100000\n640\n"
    layer.lamella("cp", f"{box}:/tmp/tree", str(tmp_path / "back"))
    assert (tmp_path / "back" / "deep" / "b").read_bytes() == b"\0\xff"
    done = layer.lamella("cp", f"{box}:/nowhere", str(tmp_path / "x"), check=False)
    assert done.returncode == 1 and b"nowhere" in done.stderr and not (tmp_path / "x").exists()


def test_a_link_inside_leads_nowhere_outside(layer, box: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    layer.lamella("exec", box, "--", "ln", "-sf", str(secret), "/tmp/link")
    done = layer.lamella("cp", f"{box}:/tmp/link", str(tmp_path / "stolen"), check=False)
    assert done.returncode != 0 or b"of the host" not in (tmp_path / "stolen").read_bytes()
    layer.lamella("exec", box, "--", "ln", "-sfn", "/", "/tmp/up")
    layer.lamella("cp", str(secret), f"{box}:/tmp/up/../../..{tmp_path}/planted", check=False)
    assert not (tmp_path / "planted").exists()


def test_paused_means_paused(layer, box: str) -> None:
    layer.lamella("pause", box)
    layer.wait_phase(box, "paused")
    refused = layer.lamella("exec", box, "--", "true", check=False)
    assert refused.returncode == 125 and b"paused" in refused.stderr
    layer.lamella("resume", box)
    layer.wait_phase(box, "running")
    assert layer.out("exec", box, "--", "echo", "awake") == "awake\n"


def test_limits_are_in_force_and_change_while_it_runs(layer, level: str, box: str) -> None:
    limits = {line["subject"]: line for line in json.loads(layer.out("contract", box, "-o", "json"))["limits"]}
    assert "192" in limits["memory"]["asked"] and limits["memory"]["enforced_by"]
    assert limits["cpu"]["enforced_by"]
    layer.lamella("set", box, "--memory", "160MiB")
    deadline = time.monotonic() + 90
    while "160" not in layer.out("contract", box):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    bigger = layer.lamella("set", box, "--memory", "8GiB", check=False)
    if level == "microvm":
        assert bigger.returncode == 1 and b"restart" in bigger.stderr
    else:
        assert bigger.returncode == 0
    layer.lamella("set", box, "--memory", "192MiB")


def test_the_contract_is_read_from_the_running_thing(layer, level: str, box: str) -> None:
    contract = json.loads(layer.out("contract", box, "-o", "json"))
    assert contract["observed"] and contract["level"].startswith(level)
    in_force = {m["name"]: m for m in contract["isolation"]}
    assert in_force and all(m["evidence"] for m in in_force.values())
    pid = layer.show(box)["status"]["pid"]
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert status["Seccomp"].strip() == "2" and status["NoNewPrivs"].strip() == "1"
    assert int(status["Uid"].split()[0]) >= 0x7000_0000
    assert contract["not_promised"]
    if level == "microvm":
        assert int(status["CapBnd"].strip(), 16) == 0 and int(status["CapEff"].strip(), 16) == 0
        assert contract["accelerator"] in ("kvm", "tcg") and contract["accelerator_reason"]


def test_explain_gives_every_decision_with_its_reason(layer, level: str, box: str) -> None:
    told = json.loads(layer.out("explain", box, "-o", "json"))
    what = {d["what"] for d in told["decisions"]}
    assert {"image", "isolation", "host", "disk", "address"} <= what
    assert ("accelerator" in what) == (level == "microvm")
    assert all(d["because"] for d in told["decisions"])


def test_ps_and_top_show_it(layer, level: str, box: str) -> None:
    listed = layer.out("ps")
    line = next(line for line in listed.splitlines() if box in line)
    assert level in line and "running" in line
    assert box in layer.out("top")
    assert box in layer.out("ps", "--filter", "label=role=test", "-o", "name")


def test_stop_is_graceful_and_start_is_the_same_machine(layer, level: str) -> None:
    name = f"again-{level}"
    layer.lamella(
        "run", "-d", "--isolation", level, "--name", name, "busybox", "--",
        "sh", "-c", "trap 'exit 5' TERM; echo run >> /root/runs; while :; do sleep 0.1; done",
    )  # fmt: skip
    layer.wait_phase(name, "running")

    def have_run(times: int) -> None:
        layer.lamella(
            "exec", name, "--", "sh", "-c", f"while [ $(cat /root/runs | wc -l) -lt {times} ]; do sleep 0.1; done"
        )

    have_run(1)
    layer.lamella("stop", name)
    assert layer.show(name)["status"]["exit_code"] == 5
    layer.lamella("start", name)
    layer.wait_phase(name, "running")
    have_run(2)
    layer.lamella("restart", name)
    layer.wait_phase(name, "running")
    have_run(3)
    refused = layer.lamella("rm", name, check=False)
    assert refused.returncode == 1 and b"--force" in refused.stderr
    layer.lamella("kill", name)
    assert layer.wait_phase(name, "stopped")["status"]["exit_code"] == 137
    layer.lamella("rm", name)
    assert layer.lamella("show", name, check=False).returncode == 1


def test_a_restart_policy_is_kept(layer, level: str) -> None:
    name = f"policy-{level}"
    layer.lamella(
        "run",
        "-d",
        "--isolation",
        level,
        "--restart",
        "on-failure:1",
        "--name",
        name,
        "busybox",
        "--",
        "sh",
        "-c",
        "exit 3",
    )
    deadline = time.monotonic() + 90
    while True:
        status = layer.show(name)["status"]
        if status["restarts"] == 1 and status["phase"] == "stopped":
            break
        assert time.monotonic() < deadline, status
        time.sleep(0.1)
    assert status["exit_code"] == 3
    layer.lamella("rm", name)


def test_every_level_is_on_the_network(layer, level: str, box: str) -> None:
    address = layer.show(box)["status"]["address"]
    assert address in layer.out("exec", box, "--", "ip", "addr")
    assert "default via 10." in layer.out("exec", box, "--", "ip", "route")
    assert layer.lamella("exec", box, "--", "hostname").stdout.decode().strip() == box
    layer.lamella("exec", box, "--", "sh", "-c", "echo neighbour > /tmp/index.html; httpd -p 81 -h /tmp")
    for other in LEVELS:
        said = layer.out(
            "run", "--rm", "--isolation", other, "busybox", "--",
            "sh", "-c", f"printf 'GET /index.html HTTP/1.0\\r\\n\\r\\n' | nc -w 60 {address} 81 | tail -n 1",
        )  # fmt: skip
        assert said == "neighbour\n"


def test_a_published_port_leads_inside(layer, level: str, netns: str) -> None:
    name = f"www-{level}"
    port = 18080 + LEVELS.index(level)
    layer.lamella(
        "run", "-d", "--isolation", level, "--name", name, "-p", f"{port}:80", "busybox", "--",
        "sh", "-c", "echo served > /tmp/index.html; exec httpd -f -p 80 -h /tmp",
    )  # fmt: skip
    layer.wait_phase(name, "running")
    deadline = time.monotonic() + 90
    while True:
        got = subprocess.run(
            [
                "nsenter",
                f"--net=/run/netns/{netns}",
                "/bin/busybox",
                "wget",
                "-q",
                "-O",
                "-",
                f"http://127.0.0.1:{port}/index.html",
            ],
            capture_output=True,
            text=True,
            timeout=90,
        )
        if got.stdout == "served\n":
            break
        assert time.monotonic() < deadline, got.stderr
        time.sleep(0.2)
    taken = layer.lamella("run", "-d", "-p", f"{port}:80", "busybox", "--", "sleep", "1", check=False)
    assert taken.returncode == 125 and str(port).encode() in taken.stderr
    layer.lamella("rm", "--force", name)


def test_what_has_ended_holds_no_rule_and_publishes_again_when_started(layer, level: str) -> None:
    name = f"port-{level}"
    # The third time it stays.
    script = "echo >>/root/times; sync; [ $(wc -l </root/times) -lt 3 ] || exec sleep 1000; sleep 1"
    begin = ("run", "-d", "--isolation", level, "--name", name, "-p", "18099:80")
    layer.lamella(*begin, "busybox", "--", "sh", "-c", script)
    for _ in range(2):
        layer.wait_phase(name, "stopped")
        deadline = time.monotonic() + 90
        while layer.show(name)["status"]["published"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        layer.lamella("start", name)
    assert layer.show(name)["status"]["published"][0]["host_port"] == 18099
    layer.lamella("rm", "--force", name)


def test_no_network_means_loopback_alone(layer, level: str) -> None:
    seen = layer.out("run", "--rm", "--isolation", level, "--network", "none", "busybox", "--", "ip", "-o", "link")
    assert [line.split(":")[1].strip() for line in seen.splitlines()] == ["lo"]
