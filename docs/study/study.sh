#!/bin/sh
# The study: trains, analyses, evaluates and hardens; what is there is not done again. As `make study`.
# What fails does not keep the rest from being done; the last line then ends with its exit code.
set -u
cd "$(dirname "$0")/../.."
here=docs/study
failed=0
trap 'exit 130' INT TERM

fragile-neurons data fetch mnist || exit
fragile-neurons data fetch cifar10 || exit
xargs -P "$(nproc)" -L 1 fragile-neurons train --threads 1 <$here/train.txt || failed=$?
for command in analyze evaluate harden; do
    fragile-neurons $command --spec $here/$command.toml --output runs/study --engine ray || failed=$?
done
python $here/collect.py && python $here/page.py || failed=$?
exit $failed
