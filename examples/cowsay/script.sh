#!/bin/sh
# The input is a text. There is no output file, so what the script prints is the answer.
set -eu
PATH=$PATH:/usr/games  # Debian has cowsay there
cowsay < "$INPUT_FILE_PATH"
