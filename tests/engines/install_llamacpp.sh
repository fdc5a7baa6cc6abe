#!/usr/bin/env bash
# Build llama.cpp's server from the sources that llama-cpp-python brings: install_llamacpp.sh FOLDER
# Exits 3, saying why, where it cannot be had here; `make llamacpp` then skips its tests.
set -euo pipefail
folder=$1
version=0.3.36

cannot() {
  echo "no llama.cpp here: $1" >&2
  exit 3
}

for tool in cmake c++; do
  command -v "$tool" > /dev/null || cannot "it is built with $tool"
done
python=${PYTHON_ENGINES:-python3}
mkdir -p "$folder"
"$python" -m pip download --quiet --disable-pip-version-check --no-deps \
  --no-binary llama-cpp-python --dest "$folder" "llama-cpp-python==$version" \
  || cannot "pip cannot get the sources of llama-cpp-python==$version"
tar -xzf "$folder/llama_cpp_python-$version.tar.gz" -C "$folder"
# Neither its web page nor what it would fetch over HTTPS is needed; its tools come along with it.
cmake -S "$folder/llama_cpp_python-$version/vendor/llama.cpp" -B "$folder/build" \
  -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=ON -DGGML_OPENMP=OFF \
  -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_TESTS=OFF \
  -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF \
  -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF > "$folder/cmake.log"
cmake --build "$folder/build" --target llama-server --parallel "${JOBS:-2}" > "$folder/build.log"
