// Mark tokens, flip their bits, walk to another picture; see what the decoder makes of it.
import { K, decode, encode, example, names, pixels, psnr, show, side, size } from './model.js'

const box = document.getElementById('flip-bits'), find = name => box.querySelector(name)
const tokens = side * side, pictures = []     // {name, image, tokens, back}
let picture                                   // the chosen one
let flips = new Array(tokens).fill(0)         // bits of each token that are flipped
let mark = { top: 0, left: 0, bottom: side - 1, right: side - 1 }   // rows and columns, both ends included
let bit = 0                                   // used last

const inside = i => {
    const row = Math.floor(i / side), column = i % side
    return row >= mark.top && row <= mark.bottom && column >= mark.left && column <= mark.right
}
const marked = () => flips.map((_, i) => i).filter(inside)
const has = (value, b) => value >> b & 1

// The walk: a share of the bits in which two pictures differ is the other's, in an order that looks random
const order = i => Math.imul(i + 1, 2654435761) >>> 0
function walked() {
    const other = pictures[find('.towards').value], differ = []
    picture.tokens.forEach((t, i) => {
        for (let b = 0; b < K; b++) if (has(t ^ other.tokens[i], b)) differ.push(i * K + b)
    })
    differ.sort((a, b) => order(a) - order(b))
    const out = [...picture.tokens], share = find('.walk').value / 100
    for (const d of differ.slice(0, Math.round(share * differ.length))) out[Math.floor(d / K)] ^= 1 << d % K
    return out
}

const current = () => walked().map((t, i) => t ^ flips[i])

// What the page says

function say(text) { find('.status').textContent = text }

function describe(image) {
    const here = marked(), [first] = here, value = current()[first]
    const signs = Array.from({ length: K }, (_, b) => has(value, b) ? '+' : '−').join('')
    const span = (a, b) => a === b ? a : `${a} to ${b}`
    const flipped = flips.reduce((n, f) => n + f.toString(2).replaceAll('0', '').length, 0)
    say(`Row ${span(mark.top, mark.bottom)}, column ${span(mark.left, mark.right)}: `
        + (here.length > 1 ? `${here.length} tokens, the first is ` : '') + `${value} = ${signs}. `
        + `${flipped} of ${tokens * K} bits flipped; ${psnr(image, picture.image).toFixed(1)} dB to the original.`)
}

function drawMark() {
    const share = n => `${100 * n / side}%`, style = find('.marked').style
    style.top = share(mark.top)
    style.left = share(mark.left)
    style.height = share(mark.bottom - mark.top + 1)
    style.width = share(mark.right - mark.left + 1)
    box.querySelectorAll('.toggles button').forEach((button, b) => {
        const on = marked().filter(i => has(flips[i], b)).length
        button.setAttribute('aria-pressed', on === 0 ? 'false' : on === marked().length ? 'true' : 'mixed')
    })
}

// One decoding at a time; what changed meanwhile is decoded after it, and only the last of it
let busy = false, again = false
async function update() {
    drawMark()
    again = true
    if (busy) return
    busy = true
    while (again) {
        again = false
        const image = await decode(current()), far = new ImageData(size, size)
        for (let i = 0; i < far.data.length; i++)
            far.data[i] = i % 4 === 3 ? 255 : 3 * Math.abs(image.data[i] - picture.back.data[i])
        show(find('.flipped'), image)
        show(find('.difference'), far)
        describe(image)
    }
    busy = false
    box.dispatchEvent(new Event('shown'))
}

// What a person does

function flip(b) {
    const here = marked(), off = here.every(i => has(flips[i], b))
    for (const i of here) flips[i] = off ? flips[i] & ~(1 << b) : flips[i] | 1 << b
    bit = b
    update()
}

function choose(i) {
    picture = pictures[i]
    flips.fill(0)
    find('.walk').value = 0
    find('.walk + output').textContent = '0 %'
    find('.towards').value = (i + 1) % pictures.length
    box.querySelectorAll('.pictures button').forEach((b, k) => b.setAttribute('aria-checked', k === i))
    show(find('.original'), picture.image)
    show(find('.back'), picture.back)
    update()
}

async function add(name, image) {
    const code = await encode(image), i = pictures.length
    pictures.push({ name, image, tokens: code, back: await decode(code) })
    const button = Object.assign(document.createElement('button'), { type: 'button', title: name })
    button.setAttribute('role', 'radio')
    button.setAttribute('aria-label', name)
    const canvas = button.appendChild(document.createElement('canvas'))
    show(canvas, image)
    button.onclick = () => choose(i)
    find('.pictures').insertBefore(button, find('.upload'))
    find('.towards').add(new Option(name, i))
    return i
}

async function upload(file) {
    let bitmap
    try { bitmap = await createImageBitmap(file) }
    catch { return say(`${file.name} is not a picture that this browser can read.`) }
    choose(await add(file.name, pixels(bitmap)))
}

// The token under the pointer
function at(event) {
    const area = find('.tokens').getBoundingClientRect(), within = x => Math.min(side - 1, Math.max(0, Math.floor(x * side)))
    return { row: within((event.clientY - area.top) / area.height), column: within((event.clientX - area.left) / area.width) }
}

function listen() {
    const area = find('.tokens')
    let start = null, focus = { row: 0, column: 0 }
    function between(a, b) {
        mark = { top: Math.min(a.row, b.row), bottom: Math.max(a.row, b.row),
                 left: Math.min(a.column, b.column), right: Math.max(a.column, b.column) }
        focus = b
        update()
    }
    area.onpointerdown = event => {
        area.setPointerCapture(event.pointerId)
        start = at(event)
        between(start, start)
    }
    area.onpointermove = event => { if (event.buttons && start) between(start, at(event)) }
    area.onkeydown = event => {
        const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key]
        if (event.key === ' ') flip(bit)
        else if (event.key.toLowerCase() === 'a' && !event.ctrlKey && !event.metaKey) {
            start = { row: 0, column: 0 }
            between(start, { row: side - 1, column: side - 1 })
        } else if (step) {
            const within = x => Math.min(side - 1, Math.max(0, x))
            const to = { row: within(focus.row + step[0]), column: within(focus.column + step[1]) }
            if (!event.shiftKey || !start) start = to
            between(start, to)
        } else return
        event.preventDefault()
    }
    find('.walk').oninput = event => { find('.walk + output').textContent = `${event.target.value} %`; update() }
    find('.towards').onchange = update
    find('.reset').onclick = () => choose(pictures.indexOf(picture))
    const input = Object.assign(document.createElement('input'), { type: 'file', accept: 'image/*' })
    const label = Object.assign(document.createElement('label'), { className: 'upload', textContent: 'Your own picture: ' })
    input.onchange = () => input.files[0] && upload(input.files[0])
    label.append(input)
    find('.pictures').append(label)
    for (let b = 0; b < K; b++) {
        const button = Object.assign(document.createElement('button'), { type: 'button', textContent: b })
        button.setAttribute('aria-label', `bit ${b}`)
        button.onclick = () => flip(b)
        find('.toggles').append(button)
    }
}

const still = document.getElementById('flip-bits-still')
try {
    listen()
    for (const name of names) await add(name, await example(name))
    box.hidden = false
    still.hidden = true
    choose(names.indexOf('star'))
} catch (error) {
    still.querySelector('.why').textContent = `The explorer could not be loaded: ${error.message}`
}
