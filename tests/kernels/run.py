#!/usr/bin/env python3
"""Runs tests inside other kernels, without KVM: run.py [--short] [KERNEL...]

A kernel of Debian runs in qemu, which emulates the processor, or is user-mode Linux, which is a
process. The guest sees the file system of this machine below an overlay, and runs test programs that
cargo built here. The last line is the total. The exit status is 1 if a test failed or a guest did
not finish.

`--short` runs some tests in user-mode Linux, with VLANs. Where that cannot run, they count as skipped.
MCASTOR_KERNEL_TESTS replaces the filters of the tests in tests/netns.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
KERNELS = TARGET / "kernels"

# By name: the Debian suite whose kernel it is. The newest has no fixed version.
SUITES = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie", "newest": "sid"}
# Kernels for which the AMT driver of Linux is built.
AMT_KERNELS = ["6.1"]
UML = "uml"
UML_MODULES = Path("/usr/lib/uml/modules")

# Filters of tests/netns. A guest has one slow processor, so tests that measure are left out.
TESTS = ["ebpf::", "ebpf_restart::", "gso::", "routes::", "ttl::", "checksums::", "translate::", "host_environment::",
         "link_types::", "amt_linux::"]
# Filters of tests/planes: the planes that use the kernel. These tests need the speed of two real
# processors, on which packets arrive within the system call that sends them.
PLANE_TESTS = ["packet::", "ebpf::"]
PLANE_SKIPPED = ["closed_capture_returns", "unread_packets_are_counted", "bridge_with_many_ports",
                 "mode_follows_the_rate", "full_gso_socket_becomes_writable_again"]
# Tests of VLANs, and of what differs before Linux 6.6.
SHORT_TESTS = ["packets::vlan", "gso::vlan", "host_environment::vlan", "host_environment::macvlan",
               "gso::gso_packets_are", "ebpf::programs_of_a_killed", "ebpf::gso",
               "ebpf::vlan", "ebpf::macvlan"]

# Drivers that a guest needs before it has the file system of the host.
MODULES = ["virtio_pci", "9pnet_virtio", "9p", "overlay"]
BOOT_SECONDS = 120
TRIES = 2


class CannotRun(Exception):
    """Why a kernel cannot run here."""


def run_checked(*command, **options):
    """Runs a command and returns its output."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise CannotRun(f"{command[0]}: {(done.stdout + done.stderr).strip()[-400:]}")
    return done.stdout


def test_programs(names, *options):
    """Builds test programs and returns their paths."""
    command = ["cargo", "test", "--locked", "--no-run", "--message-format=json", *options]
    for name in names:
        command += ["--test", name]
    built = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if built.returncode != 0:
        raise SystemExit(built.returncode)
    paths = {}
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] in names:
            paths[message["target"]["name"]] = message["executable"]
    return [paths[name] for name in names]


def initramfs(folder, version):
    """Writes the initramfs of a kernel, with busybox, init.sh and modules. Returns its path."""
    tree = folder / "initramfs"
    shutil.rmtree(tree, ignore_errors=True)
    for name in ["bin", "dev", "proc", "sys", "lower", "upper", "root", "modules"]:
        (tree / name).mkdir(parents=True)
    shutil.copy(need("busybox", "busybox-static"), tree / "bin/busybox")
    shutil.copy(HERE / "init.sh", tree / "init")
    order = []
    for module in MODULES:
        shown = subprocess.run(
            [need("modprobe", "kmod"), "--dirname", folder, "--set-version", version, "--show-depends", module],
            capture_output=True, text=True, check=False)
        # A module that is not found is part of the kernel.
        for line in shown.stdout.splitlines():
            if line.startswith("insmod ") and (path := Path(line.split()[1])) not in order:
                order.append(path)
    names = []
    for path in order:
        copy = tree / "modules" / path.name
        shutil.copy(path, copy)
        if copy.suffix == ".xz":
            run_checked("unxz", copy)
            copy = copy.with_suffix("")
        names.append(f"/modules/{copy.name}\n")
    (tree / "modules/order").write_text("".join(names))
    image = folder / "initramfs.img"
    with image.open("wb") as out:
        files = subprocess.run(["find", "."], cwd=tree, capture_output=True, check=True).stdout
        subprocess.run(["cpio", "--quiet", "--create", "--format=newc"], cwd=tree, input=files,
                       stdout=out, check=True)
    return image


def need(program, package):
    """Returns the path of a program."""
    if path := shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin"):
        return path
    raise CannotRun(f"{program} is missing (apt-get install {package})")


def prepare(kernel):
    """Fetches a kernel. Returns its folder and the command that boots it, without the job."""
    folder = KERNELS / kernel
    for name, package in [("busybox", "busybox-static"), ("modprobe", "kmod"), ("cpio", "cpio"),
                          ("xz", "xz-utils")]:
        need(name, package)
    if kernel == UML:
        program = need("linux.uml", "user-mode-linux")
        (folder / "lib").mkdir(parents=True, exist_ok=True)
        link = folder / "lib/modules"
        if not link.is_symlink():
            link.symlink_to(UML_MODULES)
        version = next(UML_MODULES.iterdir()).name
        return folder, [program, "mem=3G", f"initrd={initramfs(folder, version)}", "con=null",
                        "con0=null,fd:1", "console=tty0"]
    qemu = need("qemu-system-x86_64", "qemu-system-x86")
    folder.parent.mkdir(parents=True, exist_ok=True)
    run_checked(HERE / "fetch.sh", SUITES[kernel], folder)
    if kernel in AMT_KERNELS:
        try:
            run_checked(HERE / "amt.sh", folder)
        except CannotRun as error:
            print(f"{kernel}: no AMT driver: {error}", flush=True)
    version = (folder / "version").read_text().strip()
    return folder, [
        qemu, "-machine", "pc", "-accel", "tcg", "-cpu", "Nehalem", "-smp", "1",
        "-m", "3G", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-serial", "stdio", "-kernel", folder / "vmlinuz", "-initrd", initramfs(folder, version),
        "-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
        "-device", "virtio-9p-pci,fsdev=host,mount_tag=host", "-append"]


def boot(kernel, folder, command, job, seconds):
    """Boots a kernel once. Returns its output, or None if it did not get to the tests."""
    log = folder / "console.log"
    line = f"console=ttyS0 quiet loglevel=1 panic=-1 job={job}"
    command = [*command, line] if command[-1] == "-append" else [*command, *line.split()[1:]]
    with log.open("wb") as out:
        guest = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out,
                                 stderr=subprocess.STDOUT, process_group=0)
        started = time.monotonic()
        try:
            while guest.poll() is None:
                time.sleep(0.2)
                passed = time.monotonic() - started
                begun = b"guest: Linux" in log.read_bytes()
                if passed > seconds or (passed > BOOT_SECONDS and not begun):
                    break
        finally:
            # User-mode Linux consists of several processes.
            try:
                os.killpg(guest.pid, 9)
            except ProcessLookupError:
                pass
            guest.wait()
    text = log.read_text(errors="replace").replace("\r", "")
    return text if "guest: Linux" in text else None


def counts(text):
    """Returns the numbers of tests that passed, failed and were skipped."""
    total = [0, 0, 0]
    pattern = r"^test result: \S+ (\d+) passed; (\d+) failed; (\d+) ignored"
    for result in re.finditer(pattern, text, re.MULTILINE):
        total = [a + int(b) for a, b in zip(total, result.groups())]
    return total


def run_tests(kernel, tests, seconds):
    """Runs the commands `tests` in a kernel. Returns the numbers of tests."""
    folder, command = prepare(kernel)
    job = folder / "job.sh"
    lines = "\n".join(f"  {test}" for test in tests)
    slowness = 4 if kernel == UML else 20
    # Programs that tests start are found as on this machine.
    paths = f"export PATH='{os.environ['PATH']}:/usr/sbin:/sbin' HOME='{Path.home()}'"
    job.write_text(f"kernel={folder}\nfolder={ROOT}\nslowness={slowness}\n{paths}\n"
                   f"run_tests() {{\n{lines}\n}}\n. {HERE}/guest.sh\n")
    started = time.monotonic()
    for _ in range(TRIES):
        text = boot(kernel, folder, command, job, seconds)
        if text is not None:
            break
    else:
        raise CannotRun(f"the guest did not start twice; see {folder}/console.log")
    version = re.search(r"guest: (Linux \S+)", text).group(1)
    passed, failed, skipped = counts(text)
    # Each of these kernels takes the programs of the eBPF plane.
    failed += len(re.findall("needs BPF programs", text))
    for line in text.splitlines():
        if re.match(r"test .* (FAILED|ignored)$|failed beside others|.* tests skipped: ", line):
            print(f"  {line}")
    if "guest: done" not in text:
        print(f"  the guest did not finish in {seconds} s; see {folder}/console.log")
        failed += 1
    elif passed + failed == 0:
        print("  no test ran")
        failed += 1
    took = time.monotonic() - started
    print(f"{version} ({kernel}): {passed} passed, {failed} failed, {skipped} skipped in {took:.0f} s",
          flush=True)
    return passed, failed, skipped


def commands(program, filters):
    """Returns a command for each filter: a test program takes only one."""
    return [f"{program} --color never --test-threads 1 {name}" for name in filters]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("kernels", nargs="*", metavar="KERNEL",
                        help=f"{', '.join([*SUITES, UML])}; all if none is named")
    arguments = parser.parse_args()
    # Ends the guest too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    filters = os.environ.get("MCASTOR_KERNEL_TESTS", "").split()
    if unknown := set(arguments.kernels) - {*SUITES, UML}:
        parser.error(f"no such kernel: {' '.join(sorted(unknown))}")
    if arguments.short:
        kernels, seconds = [UML], 200
        programs = test_programs(["netns"])
        tests = commands(programs[0], filters or SHORT_TESTS)
    else:
        kernels, seconds = arguments.kernels or [*SUITES, UML], 3600
        # Optimised, because an emulated processor is slow.
        netns, planes = test_programs(["netns", "planes"], "--release")
        tests = commands(netns, filters or TESTS)
        if not filters:
            skipped = "".join(f" --skip {name}" for name in PLANE_SKIPPED)
            tests += [command + skipped for command in commands(planes, PLANE_TESTS)]
    total = [0, 0, 0]
    for kernel in kernels:
        try:
            result = run_tests(kernel, tests, seconds)
        except CannotRun as error:
            print(f"{kernel}: skipped: {error}", flush=True)
            result = (0, 0, 1)
        total = [a + b for a, b in zip(total, result)]
    print("kernels: {} passed, {} failed, {} skipped".format(*total))
    sys.exit(1 if total[1] else 0)


if __name__ == "__main__":
    main()
