#!/usr/bin/env node
// Counts the words of a text. It reads each call as a line of JSON.
const fs = require('node:fs');
const readline = require('node:readline');

let calls = 0; // in place of a model: it stays in memory

function countWords({ INPUT_FILE_PATH, TMP_OUTPUT_DIR }) {
  const words = fs.readFileSync(INPUT_FILE_PATH, 'utf8').match(/\S+/g);
  if (!words) throw new Error('the text has no words');
  calls += 1;
  fs.writeFileSync(`${TMP_OUTPUT_DIR}/words.txt`, `${words.length} words, call ${calls} of this worker\n`);
}

function serve(line) {
  try {
    countWords(JSON.parse(line).env);
    fs.writeSync(4, 'done\n');
  } catch (error) {
    console.error(error);
    fs.writeSync(4, 'done 1\n');
  }
}

fs.writeSync(4, 'ready\n');
readline.createInterface({ input: fs.createReadStream(null, { fd: 3 }) }).on('line', serve);
