#!/bin/sh
# Plant faults in the CUDA kernel's source and see that its tests on the host find each one.
# usage: tests/native/planted_faults.sh [python]
set -eu
python=${1:-python}
root=$(cd "$(dirname "$0")/../.." && pwd)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
cp -r "$root/csrc" "$root/CMakeLists.txt" "$out"
build() {
  cmake --build "$out/build" > "$out/log" 2>&1 || { cat "$out/log"; exit 1; }
}
passes() {
  ALIGNBEAM_EXTENSION=$(ls "$out"/build/_C*.so) OMP_NUM_THREADS=1 timeout 300 \
    "$python" -m pytest -q -x -p no:cacheprovider "$root/tests/ops/test_cuda_steps.py" \
    > "$out/tests" 2>&1
}
cmake -S "$out" -B "$out/build" -DALIGNBEAM_CUDA=OFF -DPYBIND11_FINDPYTHON=ON \
  -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" > "$out/log"
build
cd "$root"
passes || { cat "$out/tests"; echo "planted_faults: the kernel fails without a fault"; exit 1; }

# File, a text in it, what takes its place (the first time it stands there).
plant() {
  "$python" -c 'import pathlib, sys
file, old, new = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
text = file.read_text()
if old not in text:
    sys.exit(f"{file.name} has no {old!r}")
file.write_text(text.replace(old, new, 1))' "$out/csrc/$1" "$2" "$3"
  build
  if passes; then echo "planted_faults: not found: $1: $2 -> $3"; exit 1; fi
  echo "found: $1: $2 -> ${3:-nothing}"
  cp "$root/csrc/$1" "$out/csrc/$1"
}
plant slots.cuh 'block_sync();' ''
plant mix_kernel.cuh '      block_sync();' ''
plant select.cuh 'return enough > kShortMinusInf ? enough' \
  'return enough > kShortMinusInf ? enough + 1'
plant select.cuh 'store_zeros(from);' ''
plant select_exactly.cuh 'block_sync();' ''
plant select.cuh 'while (four.x == 0 || four.y == 0 || four.z == 0 || four.w == 0);' 'while (false);'
plant select.cuh 'four.x == 0 || four.y == 0' 'four.x == 0'
plant select_exactly.cuh '        block_sync();
      }
      return rank < wanted;' '      }
      return rank < wanted;'
plant slots.cuh '  block_sync();
}' '}'
