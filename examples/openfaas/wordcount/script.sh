#!/bin/sh
# The input is a text. The output is a table of its words, with the most frequent word first.
set -eu
export LC_ALL=C
echo "counting $(wc -w < "$INPUT_FILE_PATH") words"
{
    echo word,count
    tr -cs '[:alpha:]' '\n' < "$INPUT_FILE_PATH" | tr '[:upper:]' '[:lower:]' | sort | uniq -c | sort -k1,1nr -k2,2 |
        sed -n 's/^ *\([0-9]*\) \(.\{1,\}\)$/\2,\1/p'
} > "$TMP_OUTPUT_DIR/words.csv"
