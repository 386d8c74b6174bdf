#!/bin/sh
# The input is a picture in any format that ImageMagick reads. The output is the same picture in grey.
set -eu
picture=$(identify -format '%m of %w by %h pixels' "$INPUT_FILE_PATH")
echo "making $picture grey"
convert "$INPUT_FILE_PATH" -colorspace Gray "$TMP_OUTPUT_DIR/gray.jpg"
