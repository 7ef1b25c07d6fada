"""One self-contained HTML page about finished or unfinished runs: what they say of themselves, and what their networks
do on a split."""
