"""python sample.py runs/digits                       64 images and a grid
python sample.py runs/digits --label 7 --num_images 10"""

from diffunet.__main__ import main

if __name__ == "__main__":
    main("sample")
