#!/bin/sh
# The input is a text. There is no output file, so what the script prints is the answer.
set -eu
PATH=$PATH:/usr/games  # where Debian has it
cowsay < "$INPUT_FILE_PATH"
