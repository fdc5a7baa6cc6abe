#!/bin/sh
# Build the extension with the address and undefined-behaviour sanitizers, run the fuzz target, then
# the property tests on that build.  usage: tests/native/sanitize.sh [python] [fuzz cases]
set -eu
python=${1:-python}
cases=${2:-3000}
root=$(cd "$(dirname "$0")/../.." && pwd)
out=$root/build/sanitize
cmake -S "$root" -B "$out" -DALIGNBEAM_SANITIZE=ON -DALIGNBEAM_FUZZ=ON -DALIGNBEAM_WERROR=ON \
  -DALIGNBEAM_CUDA=OFF -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPYBIND11_FINDPYTHON=ON \
  -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)"
cmake --build "$out"
"$out/fuzz_mix_topk" "$cases"
# The interpreter itself is not built with the sanitizer, so its runtime is loaded first; and with it
# the C++ runtime, which the sanitizer must find at the start to let torch's exceptions pass. What
# CPython keeps until exit is no leak of ours.
cd "$root"
LD_PRELOAD="$(c++ -print-file-name=libasan.so) $(c++ -print-file-name=libstdc++.so)" \
  ASAN_OPTIONS=detect_leaks=0 \
  ALIGNBEAM_EXTENSION=$(ls "$out"/_C*.so) OMP_NUM_THREADS=1 \
  "$python" -m pytest -q -x -p no:cacheprovider tests/ops/test_backends.py \
  tests/ops/test_invariance.py tests/ops/test_contract.py tests/ops/test_cuda_steps.py
