# Snakemake runs this when it has made the environment of judge.yaml. What reads text (metrics.ocr), as envs/ocr.txt has it.
python -m pip install --no-deps rapidocr-onnxruntime==1.4.4 onnxruntime==1.32.0 flatbuffers==25.12.19 pyclipper==1.4.0 shapely==2.2.0 six==1.17.0
