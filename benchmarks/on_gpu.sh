#!/bin/sh
# The engine's figures on a bare GPU machine: torch, timm, onnx and onnxruntime are there, a network is not.
#
#   sh benchmarks/on_gpu.sh SITE install FILE...                  wheels, and archives of unpacked ones
#   sh benchmarks/on_gpu.sh SITE run COMMAND...                   a command with all of that, autoft doctor for example:
#                                                                 then every library was read from a cold disk once
#   sh benchmarks/on_gpu.sh SITE OUT --parts training,packing     benchmarks/engine.py; its results go to the folder OUT
#
# SITE is a folder outside the tree. autoft and its plugin run from the tree.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
site=$1 what=$2
shift 2
mkdir -p "$site"
export PYTHONPATH="$site:$root:$root/plugins/autoft-lite" PYTHONUNBUFFERED=1 COLUMNS=150

if [ "$what" = install ]; then
    for file; do
        shift
        case $file in
        *.whl) set -- "$@" "$file" ;;
        *) python3 -W ignore -m tarfile -e "$file" "$site" || exit 1 ;;
        esac
    done
    if [ $# -gt 0 ]; then
        python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$@" || exit 1
    fi
    python3 "$root/benchmarks/parts/enlist.py" "$site" "$root" "$root/plugins/autoft-lite"
    exec python3 -m compileall -q -j 0 "$site" "$root/autoft" "$root/plugins" >/dev/null # as pip would have done
fi
[ "$what" != run ] || exec "$@"

mkdir -p "$what"
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
python3 "$root/benchmarks/engine.py" "$@"
code=$?
cp "$root"/benchmarks/results/engine_*.json "$what"
exit $code
