"""Put the table of a Record into README.md: `python benchmarks/readme_table.py records/NAME.json.gz`.

The Record must lie in the repository and be valid; tests/test_readme.py holds the README to it from then on.
"""

import re
import sys
from pathlib import Path

from perwatt.lab.check import require_valid
from perwatt.lab.markdown import markdown
from perwatt.lab.record_file import load

ROOT = Path(__file__).parent.parent
SECTION = re.compile(r"<!-- table(?: of (?P<record>\S+))? -->\n(?P<table>.*?)<!-- end of table -->\n", re.DOTALL)


def main() -> None:
    """Replace what stands between the two marks."""
    path = Path(sys.argv[1]).resolve().relative_to(ROOT)
    record = load(ROOT / path)
    require_valid(record, str(path))
    readme = ROOT / "README.md"
    section = f"<!-- table of {path.as_posix()} -->\n{markdown(record)}<!-- end of table -->\n"
    readme.write_text(SECTION.sub(lambda _: section, readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
