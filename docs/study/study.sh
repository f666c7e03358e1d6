#!/bin/sh
# The study: trains, analyses, evaluates and hardens; what is there is not done again. As `make study`.
set -eu
cd "$(dirname "$0")/../.."
here=docs/study

fragile-neurons data fetch mnist
fragile-neurons data fetch cifar10
xargs -P "$(nproc)" -L 1 fragile-neurons train --threads 1 <$here/train.txt
for command in analyze evaluate harden; do
    fragile-neurons $command --spec $here/$command.toml --output runs/study --engine ray
done
python $here/collect.py
python $here/page.py
