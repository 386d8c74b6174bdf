#!/bin/sh
# The input is a picture of a plant, the output the classifier's answer.
set -eu

# The classifier wants a name that ends in .jpg.
mv "$INPUT_FILE_PATH" "$INPUT_FILE_PATH.jpg"

# It writes to the working directory before it moves its file to where -o says.
cd "$TMP_OUTPUT_DIR"
deepaas-predict -i "$INPUT_FILE_PATH.jpg" -o "$TMP_OUTPUT_DIR"
