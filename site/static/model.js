// The networks of the page: ONNX files, run by onnxruntime-web, and what canvases need.
import * as ort from './vendor/ort.wasm.min.mjs'

const here = new URL('.', import.meta.url)
ort.env.wasm.numThreads = 1     // more would need headers that plain web servers do not send
ort.env.wasm.wasmPaths = new URL('vendor/', here).href

export const about = await (await fetch(new URL('models/about.json', here))).json()
export const { bits: K, resolution: size } = about.tokenizer
export const side = about.generator.side, names = about.generator.class_names

const sessions = {}
function session(name) {        // fetched when it is first used
    return sessions[name] ??= ort.InferenceSession.create(new URL(`models/${name}.onnx`, here).href)
}

const whole = (values, shape) => new ort.Tensor('int64', BigInt64Array.from(values, BigInt), shape)

// Pixels of an ImageData, (size, size), to tokens
export async function encode(image) {
    const n = size * size, x = new Float32Array(3 * n)
    for (let i = 0; i < n; i++)
        for (let c = 0; c < 3; c++) x[c * n + i] = image.data[4 * i + c] / 255
    const out = await (await session('encoder')).run({ images: new ort.Tensor('float32', x, [1, 3, size, size]) })
    return Array.from(out.tokens.data, Number)
}

// Tokens to an ImageData
export async function decode(tokens) {
    const out = await (await session('decoder')).run({ tokens: whole(tokens, [1, side, side]) })
    const n = size * size, image = new ImageData(size, size)
    for (let i = 0; i < n; i++) {
        for (let c = 0; c < 3; c++) image.data[4 * i + c] = Math.round(255 * out.images.data[c * n + i])
        image.data[4 * i + 3] = 255
    }
    return image
}

// Groups and mask of one picture and a class -> logits with the class, and without one
export async function predict(groups, mask, label) {
    const { classes, groups: N } = about.generator, shape = [2, side * side, N]
    const feeds = { groups: whole([...groups, ...groups], shape), labels: whole([label, classes], [2]),
                    mask: new ort.Tensor('bool', Uint8Array.from([...mask, ...mask]), shape) }
    const logits = (await (await session('generator')).run(feeds)).logits.data
    return [logits.subarray(0, logits.length / 2), logits.subarray(logits.length / 2)]
}

export function show(canvas, image) {
    canvas.width = canvas.height = size
    canvas.getContext('2d').putImageData(image, 0, 0)
}

// A picture of any size, its middle square scaled to (size, size)
export function pixels(picture) {
    const canvas = new OffscreenCanvas(size, size), draw = canvas.getContext('2d', { willReadFrequently: true })
    const edge = Math.min(picture.width, picture.height)
    draw.fillStyle = 'white'
    draw.fillRect(0, 0, size, size)
    draw.imageSmoothingQuality = 'high'
    draw.drawImage(picture, (picture.width - edge) / 2, (picture.height - edge) / 2, edge, edge, 0, 0, size, size)
    return draw.getImageData(0, 0, size, size)
}

export async function example(name) {
    const file = await fetch(new URL(`pictures/${name}.png`, here))
    return pixels(await createImageBitmap(await file.blob()))
}

// PSNR in dB of two ImageData
export function psnr(a, b) {
    let sum = 0
    for (let i = 0; i < a.data.length; i++) if (i % 4 < 3) sum += ((a.data[i] - b.data[i]) / 255) ** 2
    return -10 * Math.log10(Math.max(sum / (3 * size * size), 1e-10))
}
