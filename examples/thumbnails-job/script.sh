#!/bin/sh
# The input is a picture in any format that ImageMagick reads. The output is a JPEG with at most 48 pixels on each side.
set -eu
name=$(basename "$INPUT_FILE_PATH")
echo "making a thumbnail of $STORAGE_OBJECT_KEY"
convert "$INPUT_FILE_PATH" -auto-orient -strip -thumbnail 48x48 "$TMP_OUTPUT_DIR/${name%.*}.jpg"
