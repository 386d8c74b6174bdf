#!/bin/sh
# The input is a picture of a plant. The output is the answer of the classifier.
set -eu

# The classifier needs a name that ends in .jpg.
mv "$INPUT_FILE_PATH" "$INPUT_FILE_PATH.jpg"

# deepaas-predict writes its file to the working directory, and then moves it to the directory of -o.
cd "$TMP_OUTPUT_DIR"
deepaas-predict -i "$INPUT_FILE_PATH.jpg" -o "$TMP_OUTPUT_DIR"
