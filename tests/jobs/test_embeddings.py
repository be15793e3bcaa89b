"""A job with --embeddings: the query of docs/table-format.md finds segments of the same class."""

import duckdb
import pytest

from jobs import segment_bucket
from pipeline.scenes.settings import ScenesSettings
from pipeline.scenes.write import write_scenes
from pipeline.tables.current_view import current_segments

pytestmark = pytest.mark.thorough

# For each thing, the share of the ten nearest segments of other images that have its class.
PRECISION = """
    WITH pairs AS (
        SELECT one.image_key, one.segment_id, one.category_id = other.category_id AS is_same,
            list_cosine_similarity(one.embedding, other.embedding) AS likeness
        FROM segments AS one, segments AS other
        WHERE one.isthing AND one.image_key <> other.image_key
        QUALIFY row_number() OVER (PARTITION BY one.image_key, one.segment_id ORDER BY likeness DESC) <= 10
    )
    SELECT avg(is_same::INT), count(DISTINCT (image_key, segment_id)) FROM pairs
"""
BY_CHANCE = """
    SELECT avg((one.category_id = other.category_id)::INT) FROM segments AS one, segments AS other
    WHERE one.isthing AND one.image_key <> other.image_key
"""


@pytest.mark.usefixtures("ray_session")
def test_the_nearest_segments_have_the_class_of_the_segment(tmp_path, capsys):
    write_scenes(ScenesSettings(output=str(tmp_path / "scenes"), number=64, seed=11))
    flags = ["--input", str(tmp_path / "scenes" / "images"), "--output", str(tmp_path / "out"), "--embeddings"]
    assert segment_bucket.main(flags) == 0
    table = current_segments(str(tmp_path / "out")).read_all()
    assert {len(embedding) for embedding in table["embedding"].to_pylist()} == {64}
    database = duckdb.connect()
    database.register("segments", table)
    [(precision, number)] = database.sql(PRECISION).fetchall()
    [(by_chance,)] = database.sql(BY_CHANCE).fetchall()
    with capsys.disabled():
        print(f"\nprecision of the nearest ten: {precision:.3f} of {number} things; by chance {by_chance:.3f}")
    assert number > 100 and by_chance < 0.5 and precision > 0.9
