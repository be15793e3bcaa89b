"""Every metric of the program: name, type, text, labels and buckets. docs/monitoring.md has the same table.

Two kinds of counters must not be confused. The driver counts **committed** results, from receipts: each image of a run
once, whatever was repeated. The stages count **work**: a shard that is done twice, because a process died, counts twice
there. Each label has few values: a stage, a step, an error code; never an image or a shard.
"""

from collections.abc import Mapping

from pipeline.telemetry.costs import ON_DEVICE
from pipeline.telemetry.instruments import Counter, Gauge, Histogram, Instrument

# --- committed: the driver, from receipts ---------------------------------------------------------------------------
IMAGES = Counter(
    "m2f_images_total",
    "Images whose receipts this driver has committed, by status (ok, failed, removed) and error code. An image of a "
    "run counts once, also if its shard was repeated or the run resumed.",
    ("status", "error_code"),
)
SEGMENTS = Counter("m2f_segments_total", "Segments in the receipts that this driver has committed.")
RECEIPTS = Counter("m2f_receipts_committed_total", "Receipts, one per shard, that this driver has committed.")
# --- the run: the driver, every few seconds -------------------------------------------------------------------------
RUN_IMAGES = Gauge("m2f_run_images", "Images of the run's plan.")
RUN_IMAGES_LEFT = Gauge("m2f_run_images_left", "Images of the plan that have no receipt yet.")
RUN_IMAGES_FAILED = Gauge("m2f_run_images_failed", "Images of the run that have failed, in all its attempts.")
RUN_SECONDS_LEFT = Gauge(
    "m2f_run_seconds_left",
    "Time until the last image is done, at the mean rate of this attempt; absent at first.",
)
RUN_FAILURE_BUDGET = Gauge(
    "m2f_run_failure_budget_images",
    "How many images may fail: --max-failure-rate of the plan, or --max-failures if that is less.",
)
RUN_DEADLINE = Gauge(
    "m2f_run_deadline_timestamp_seconds", "When the run has to be done, with --deadline; absent without."
)
RUN_LAST_RECEIPT = Gauge(
    "m2f_run_last_receipt_timestamp_seconds",
    "When the driver got its last receipt; before the first, when it began.",
)
RUN_SLOWEST_SHARD = Gauge(
    "m2f_run_slowest_shard_seconds",
    "Lag of the slowest shard: for how long it has been at its stage; 0 if no stage works.",
)
RUN_SHARDS = Gauge(
    "m2f_run_shards",
    "Shards by stage (reading, segmenting, writing) and state: working, or waiting for that stage (its queue).",
    ("stage", "state"),
)
RUNS = Counter(
    "m2f_runs_total",
    "Drivers that ended, by output and outcome: finished, nothing_to_do, broke, stopped.",
    ("output", "outcome"),
)
COST = Counter(
    "m2f_cost_usd_total",
    "US dollars for the devices that model actors held, by the table of --prices; the driver counts what they report.",
)
# --- work: the stages, once a shard ---------------------------------------------------------------------------------
STAGE_IMAGES = Counter(
    "m2f_stage_images_total",
    "Images that a stage has worked on, by what came of them there. Repeated work counts again.",
    ("stage", "status", "error_code"),
)
SHARD_SECONDS = Histogram(
    "m2f_shard_seconds",
    "Elapsed time of one shard at a stage.",
    ("stage",),
    buckets=(0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0),
)
STEP_SECONDS = Counter(
    "m2f_step_seconds_total",
    "Seconds by step: elapsed time for model and reduce, CPU time for read, decode, resize, encode and write.",
    ("step",),
)
IMAGE_STEP_SECONDS = Histogram(
    "m2f_image_step_seconds",
    "Seconds that a step takes for one image, as the mean of a shard; elapsed or CPU time as m2f_step_seconds_total.",
    ("step",),
    buckets=(0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
)
READ_BYTES = Counter("m2f_read_bytes_total", "Encoded bytes of images that were read.")
WRITTEN_BYTES = Counter("m2f_written_bytes_total", "Bytes of the parts that were written, by table.", ("table",))
# --- work: the model actors, once a batch ---------------------------------------------------------------------------
BATCH_IMAGES = Histogram(
    "m2f_batch_images",
    "Images in one batch.",
    buckets=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0),
)
BATCH_FILL = Histogram(
    "m2f_batch_fill_ratio",
    "Images in one batch as a share of the most that --batch-size and memory allow at its size.",
    buckets=(0.1, 0.25, 0.5, 0.75, 0.9, 0.999),
)
DEVICE_BUSY = Counter(
    "m2f_device_busy_seconds_total", "Seconds in which the device of a model actor worked, by device.", ("device",)
)
DEVICE_RESERVED = Counter(
    "m2f_device_reserved_seconds_total",
    "Seconds for which model actors held a device, busy or not; loading the model counts.",
    ("device",),
)
# --- trouble: any process -------------------------------------------------------------------------------------------
RETRIES = Counter(
    "m2f_retries_total",
    "Work that is done again, by cause. Of the store, after its client's own retries: throttled, server_error, "
    "timed_out, connection, corrupt, conflict, other. Of the model: out_of_memory, batch_failed, shard_restarted, "
    "one_by_one.",
    ("cause",),
)
STORE_ERRORS = Counter(
    "m2f_store_errors_total",
    "Requests to S3 that went wrong, before the client's own retries: throttled, server_error, conflict, timed_out, "
    "connection.",
    ("cause",),
)

ALL: tuple[Instrument, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Instrument))


def count_shard(
    stage: str, images: Mapping[str, int], elapsed_seconds: float, step_seconds: Mapping[str, float]
) -> None:
    """Count the work of one stage on one shard. `images`: how many, by error code, by `ok` or by `removed`."""
    for outcome, number in images.items():
        status = outcome if outcome in ("ok", "removed") else "failed"
        STAGE_IMAGES.add(number, stage=stage, status=status, error_code=outcome if status == "failed" else "")
    SHARD_SECONDS.observe(elapsed_seconds, stage=stage)
    num_images = sum(number for outcome, number in images.items() if outcome != "removed")
    for step, seconds in step_seconds.items():
        STEP_SECONDS.add(seconds, step=step)
        if num_images:
            IMAGE_STEP_SECONDS.observe(seconds / num_images, step=step)


def on_device(step_seconds: Mapping[str, float]) -> float:
    """The seconds of the steps that the device computes."""
    return sum(step_seconds.get(step, 0.0) for step in ON_DEVICE)
