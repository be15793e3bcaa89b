"""Compare the rows of all files with each other and with the plans, in SQL on disk: for any number of images."""

from dataclasses import dataclass, field

import duckdb

from m2f_core.config.fields import excerpt
from pipeline.verify.books import Library
from pipeline.verify.facts import TableFile
from pipeline.verify.findings import Findings, Kind

# In the tables `images` (FOUND_IMAGES), `groups` (GROUPS) and `plan` (PLANNED), which the streams have filled.
_SUMS = """
    CREATE OR REPLACE TABLE sums AS
    SELECT run_id, image_key, sum(num_rows)::BIGINT AS num_rows, sum(num_ids)::BIGINT AS num_ids,
           max(last_id) AS last_id, sum(area)::BIGINT AS area, min(height) AS height, min(width) AS width,
           min(shard) AS shard, min(file) AS file, count(*) AS num_places
    FROM groups GROUP BY run_id, image_key
"""
_JOINED = """
    CREATE OR REPLACE VIEW joined AS
    SELECT i.*, s.num_rows, s.num_ids, s.last_id, s.area, s.height AS mask_height, s.width AS mask_width,
           s.shard AS segments_shard, s.file AS segments_file, tasks.task, tasks.covers
    FROM images i LEFT JOIN sums s USING (run_id, image_key) JOIN tasks USING (run_id)
"""
# Where an image lies on Earth is found when the image is decoded, and added to what the input says of the image.
_SAME_ATTRIBUTES = """
    i.attributes IS NOT DISTINCT FROM p.attributes OR CASE
        WHEN json_valid(i.attributes) AND json_valid(coalesce(p.attributes, '{}')) AND i.attributes LIKE '%"geotiff": %'
        THEN json_merge_patch(i.attributes, '{"geotiff": null}')::VARCHAR
             = json_merge_patch(coalesce(p.attributes, '{}'), '{"geotiff": null}')::VARCHAR
        ELSE false END
"""
# Planned images without a row.
_MISSING = """
    CREATE OR REPLACE VIEW missing_images AS
    SELECT run_id, image_key, shard, reason FROM plan ANTI JOIN images USING (run_id, image_key)
"""
_AS_PLANNED = (
    "SELECT i.run_id, i.image_key, i.file, {found} AS found FROM images i JOIN plan p USING (run_id, image_key)"
)


@dataclass(frozen=True)
class Comparison:
    """The comparisons. `files` name the examples; runs in `unknown` are not compared with their plans."""

    database: duckdb.DuckDBPyConnection
    library: Library
    files: tuple[TableFile, ...]
    findings: Findings
    unknown: set[str] = field(default_factory=set)

    def prepare(self) -> None:
        self.database.execute("CREATE OR REPLACE TABLE tasks (run_id VARCHAR, task VARCHAR, covers BOOLEAN)")
        rows = [(run_id, books.facts.task, books.facts.covers) for run_id, books in self.library.books.items()]
        if rows:
            self.database.executemany("INSERT INTO tasks VALUES (?, ?, ?)", rows)
        self.database.execute(_SUMS)
        self.database.execute(_JOINED)
        self.database.execute(_MISSING)

    def compare_rows(self) -> None:
        """Rows of `images` with rows of `segments`."""
        find = self.find
        find(
            Kind.SEVERAL_ROWS,
            "image_key",
            "SELECT run_id, image_key, min(file) AS file, count(*) || ' rows' AS found FROM images "
            "GROUP BY run_id, image_key HAVING count(*) > 1",
        )
        find(
            Kind.NO_IMAGE,
            "image_key",
            "SELECT run_id, image_key, file, num_rows || ' segments' AS found FROM sums "
            "ANTI JOIN images USING (run_id, image_key)",
        )
        # What segments say wrongly is in their file, if there is one.
        of_joined = "SELECT run_id, image_key, coalesce({file}, file) AS file, {found} AS found FROM joined WHERE {bad}"
        for kind, name, found, bad in (
            (
                Kind.OF_NO_RESULT,
                "status",
                "status || ', ' || num_rows || ' segments'",
                "status <> 'ok' AND num_rows > 0",
            ),
            (
                Kind.NUM_SEGMENTS,
                "num_segments",
                "num_segments || ', but ' || coalesce(num_rows, 0) || ' rows'",
                "status = 'ok' AND num_segments <> coalesce(num_rows, 0)",
            ),
            (
                Kind.SIZE,
                "height, width",
                "height || ' x ' || width || ', its masks ' || mask_height || ' x ' || mask_width",
                "status = 'ok' AND (height <> mask_height OR width <> mask_width)",
            ),
            (
                Kind.OF_RUN,
                "shard",
                "'shard ' || shard || ', its segments ' || segments_shard",
                "shard <> segments_shard",
            ),
            (
                Kind.SEGMENT_IDS,
                "segment_id",
                "num_ids || ' ids, the last is ' || last_id",
                "task <> 'semantic' AND num_ids <> last_id",
            ),
            (
                Kind.NOT_COVERED,
                "area",
                "coalesce(area, 0) || ' of ' || height::BIGINT * width || ' pixels'",
                "covers AND status = 'ok' AND coalesce(area, 0) <> height::BIGINT * width",
            ),
        ):
            file = "segments_file" if kind in (Kind.SEGMENT_IDS, Kind.NOT_COVERED) else "file"
            find(kind, name, of_joined.format(file=file, found=found, bad=bad))

    def compare_plans(self) -> None:
        """Rows of `images` with the plans, of the runs whose plans are known."""
        for run_id in self.unknown:
            self.database.execute("DELETE FROM plan WHERE run_id = ?", [run_id])
        self.find(
            Kind.NOT_PLANNED,
            "image_key",
            "SELECT run_id, image_key, file, 'shard ' || shard AS found FROM images "
            "SEMI JOIN (SELECT DISTINCT run_id FROM plan) USING (run_id) ANTI JOIN plan USING (run_id, image_key)",
        )
        for name, bad in (
            ("shard", "i.shard <> p.shard"),
            ("reason", "i.reason <> p.reason"),
            ("etag", "p.etag <> '' AND i.etag <> p.etag"),
            # The rows of a Parquet file have the mean size of their row group in the plan.
            ("size_bytes", "p.row_group IS NULL AND p.size_bytes IS NOT NULL AND i.size_bytes <> p.size_bytes"),
            ("attributes", f"NOT ({_SAME_ATTRIBUTES})"),
        ):
            found = f"coalesce(i.{name}::VARCHAR, 'null') || ', planned ' || coalesce(p.{name}::VARCHAR, 'null')"
            self.find(Kind.NOT_AS_PLANNED, name, f"{_AS_PLANNED.format(found=found)} WHERE {bad}")

    def compare_counts(self, runs: set[str]) -> None:
        """Counts of rows with report.json, of runs whose rows are all there."""
        counted = self.database.execute(
            "SELECT run_id, status, error_code, count(*) FROM images GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        segments = dict(self.database.execute("SELECT run_id, sum(num_rows)::BIGINT FROM sums GROUP BY ALL").fetchall())
        for run_id in sorted(runs):
            of_run = [row[1:] for row in counted if row[0] == run_id]
            report = self.library.books[run_id].report
            by_code = {code: number for status, code, number in of_run if status == "failed"}
            figures: dict[str, object] = {
                "num_images": sum(number for _, _, number in of_run),
                **{
                    f"num_{name}": sum(number for status, _, number in of_run if status == name)
                    for name in ("ok", "failed", "removed")
                },
                "failed_by_code": by_code,
                "num_segments": segments.get(run_id, 0),
            }
            for name, value in figures.items():
                there = getattr(report, name)
                if there != value:
                    self.findings.add(Kind.COUNTS, name, f"{there} in the report, {value} rows", run_id=run_id)

    def find(self, kind: Kind, name: str, query: str) -> None:
        """Add a finding with the count and the first row of the query: run_id, image_key, file, found."""
        row = self.database.execute(
            f"SELECT *, count(*) OVER () FROM ({query}) ORDER BY run_id, image_key, found LIMIT 1"
        ).fetchone()
        if row is not None:
            run_id, key, file, found, count = row
            path = "" if file is None else self.files[file].path
            said = excerpt(found)[1:-1]
            self.findings.add(kind, name, said, run_id=run_id, file=path, key=excerpt(key)[1:-1], count=count)
