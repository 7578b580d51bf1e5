"""Write resources/paper-results.parquet from resources/paper-results.csv, which people read and edit.

    python scripts/build_published.py

The columns are those of `cisterna.report.published`. tests/report/test_published.py fails if the file is out of date.
"""

from pathlib import Path

from cisterna.report import published

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "resources" / "paper-results.parquet"

if __name__ == "__main__":
    published.read(TABLE.with_suffix(".csv")).to_parquet(TABLE, index=False)
    print(f"wrote {TABLE}")
