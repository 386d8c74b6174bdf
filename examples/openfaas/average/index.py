"""Read numbers from stdin as they arrive, one in each line. Print their count, their mean and their range."""

import json
import math
import sys

count, total, smallest, largest = 0, 0.0, math.inf, -math.inf
for line in sys.stdin:
    try:
        number = float(line)
    except ValueError:
        sys.exit(f"line {count + 1}: {line.strip()!r} is not a number")
    count += 1
    total += number
    smallest, largest = min(smallest, number), max(largest, number)
if not count:
    sys.exit("there are no numbers")
print(json.dumps({"count": count, "mean": total / count, "min": smallest, "max": largest}))
