#!/usr/bin/env bash
# An installed adder serves a recipe outside the repository: install, configure, build, run.
source "$(dirname "$0")/script.sh"

outside=$work
"$cmake" --install "$build_folder" --prefix "$outside/prefix" >"$outside/log"
cp -r "$source_folder/tests/package" "$outside/source"
"$cmake" -S "$outside/source" -B "$outside/build" -G Ninja -DCMAKE_PREFIX_PATH="$outside/prefix"
"$cmake" --build "$outside/build"

said=$("$outside/build/my_recipe")
expected=$'6\nsource/main.cpp:14: a recipe of 20 lines'
if [[ $said != "$expected" ]]; then
  echo "the recipe said '$said', expected '$expected'"
  exit 1
fi

# The installed headers must be enough: none may reach back into the repository.
if grep -rlF "$source_folder" "$outside/prefix" --include=*.h --include=*.cmake; then
  echo "the files above name the source folder"
  exit 1
fi
