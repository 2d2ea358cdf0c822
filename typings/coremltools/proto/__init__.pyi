from typing import Any

# protobuf's generated classes carry no types
Model_pb2: Any
MIL_pb2: Any
FeatureTypes_pb2: Any
