"""What a request may ask for. A page tells its visitors these; whoever asks for more gets one sentence."""

SIZE = 28
"""Height and width of a drawing."""
PIXELS = SIZE * SIZE
"""Numbers of a drawing."""
MIN_WAYS, MAX_WAYS, MAX_SHOTS = 2, 10, 5
"""Classes, and drawings of each, on the page's characters."""

MAX_POINTS, MAX_CURVE_STEPS = 20, 10
"""Points of a curve, and gradient steps."""
X_LIMIT, Y_LIMIT = 5.0, 10.0
"""How far from zero a point may lie: x as in training, y to twice the largest amplitude there."""
GRID = 101
"""Places between -X_LIMIT and X_LIMIT at which a curve is predicted."""

JSON_BYTES = 512 * 1024
"""Largest JSON body: fifty drawings and one more take up to 250 KiB with generous spaces."""
BODY_S = 30.0
"""Seconds in which a body must have arrived."""
HEADER_S = 10.0
"""Seconds in which a request's header must have arrived."""

RUN_WAYS, RUN_SUPPORT, RUN_QUERIES = 20, 100, 50
"""Classes, support images and query images of an upload."""
FILE_BYTES, UPLOAD_BYTES = 10 * 2**20, 64 * 2**20
"""Largest file, and largest upload in all."""
IMAGE_PIXELS, UPLOAD_PIXELS = 16_000_000, 200_000_000
"""Pixels of an uploaded image, and of all images of an upload. Decoding takes up to 24 bytes for each of the one image
that is decoded at a time (WebP with transparency; 12 for JPEG), and a second for some 30 million."""
NAME_LENGTH = 100
"""Characters in the name of a class or file."""

WAITING = 64
"""Requests that may wait for their turn; more are told to come back."""
UPLOADS = 4
"""Uploads taken in at the same time, waiting ones among them."""
CONNECTIONS = 512
"""Connections at the same time."""
