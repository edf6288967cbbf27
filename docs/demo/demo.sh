# The demo, as ./dev demo runs it: every line is a command that you can type yourself.
set -euo pipefail
show() { printf '\n\033[36m$ %s\033[0m\n' "$*" >&2; "$@"; }
here=$(dirname "$0") made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT

show lamella doctor
# One build makes a root filesystem for containers and microVMs, and a bootable disk of it for full machines.
show lamella image build debian:12 --disk
show lamella image ls

# 1, 2: the same image as a container, and under a kernel of its own.
show lamella run --rm debian:12 -- cat /etc/os-release
show lamella run --rm --isolation microvm debian:12 -- uname -r
printf '\n(the host runs %s)\n' "$(uname -r)"

# 3: a full machine, with firmware, an init of its own, and a screen. It boots while the rest goes on.
show lamella run -d --isolation vm --name db --cpu 2 --memory 1GiB --disk 8GiB --tpm debian:12

# 4: a WebAssembly module, from a few lines of text.
.venv/bin/python -c 'import sys, wasmtime; open(sys.argv[2], "wb").write(wasmtime.wat2wasm(open(sys.argv[1]).read()))' \
  "$here/hello.wat" "$made/hello.wasm"
show lamella run --rm --isolation wasm "$made/hello.wasm"

# 5: a unikernel, from a few lines of assembly.
gcc -c "$here/kernel.S" -o "$made/kernel.o"
ld -nostdlib -z noexecstack -Ttext=0x100000 -e start "$made/kernel.o" -o "$made/kernel.elf"
show lamella run --rm --isolation unikernel "$made/kernel.elf"

show lamella run -d --name web --cpu 0.5 --memory 256MiB debian:12 -- sleep infinity
show lamella run -d --name cell --isolation microvm --cpu 1 --memory 512MiB debian:12 -- sleep infinity
show lamella exec web -- sh -c 'cat /proc/self/uid_map; id'
show lamella exec cell -- sh -c 'uname -r; id'
# The agent inside answers as soon as the machine has booted.
until lamella exec db -- true 2>/dev/null; do :; done
show lamella exec db -- sh -c 'uname -r; systemd-detect-virt; cat /sys/class/tpm/tpm0/tpm_version_major'
show lamella screenshot db -o "$made/db.png"
show lamella ps
show lamella contract --compare container microvm vm
show lamella contract db
show lamella explain cell
show lamella rm --force web cell db
