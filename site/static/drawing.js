// A picture from nothing, step by step (App. B.3): draw all hidden groups, keep the surest.
import { K, about, decode, names, predict, show, side } from './model.js'

const box = document.getElementById('draw-picture'), find = name => box.querySelector(name)
const { groups: N, sample } = about.generator, total = side * side * N, codes = 2 ** (K / N)

const gumbel = () => -Math.log(-Math.log(Math.random() || 1e-12))

function softmax(logits) {
    const most = Math.max(...logits), e = logits.map(x => Math.exp(x - most)), sum = e.reduce((a, b) => a + b)
    return e.map(x => x / sum)
}

function drawn(p) {     // an index, as likely as p says
    let u = Math.random()
    for (let i = 0; i < p.length; i++) if ((u -= p[i]) < 0) return i
    return p.length - 1
}

// How many groups are hidden after step i of n: arccos, at least one less than before
function hiddenAfter(i, n, before) {
    const want = Math.floor(Math.acos((i + 1) / n) / (Math.PI / 2) * total)
    return Math.max(n - 1 - i, Math.min(before - 1, want))
}

// Power-cosine guidance at x in [0, 1)
const weight = (x, scale) => scale * (1 - Math.cos(Math.PI * x ** sample.scale_pow)) / 2

// Tokens of groups: the first group is the lowest bits
function joined(groups) {
    return Array.from({ length: side * side }, (_, i) => {
        let token = 0
        for (let g = N - 1; g >= 0; g--) token = token * codes + groups[i * N + g]
        return token
    })
}

async function* steps(label, n, scale) {
    const groups = new Array(total).fill(0), mask = new Array(total).fill(1)
    let hidden = total
    for (let i = 0; i < n; i++) {
        const [given, none] = await predict(groups, mask, label), w = weight(i / n, scale)
        const sure = mask.map((m, k) => {
            if (!m) return Infinity
            const at = k * codes, logits = []
            for (let c = at; c < at + codes; c++) logits.push(given[c] + w * (given[c] - none[c]))
            const p = softmax(logits.map(x => x / sample.softmax_temperature))
            groups[k] = drawn(p)
            return Math.log(p[groups[k]]) + sample.temperature * (1 - (i + 1) / n) * gumbel()
        })
        hidden = hiddenAfter(i, n, hidden)
        mask.fill(0)
        for (const k of sure.map((_, k) => k).sort((a, b) => sure[a] - sure[b]).slice(0, hidden)) mask[k] = 1
        yield { step: i + 1, hidden, image: await decode(joined(groups)) }
    }
}

function frame(image, text) {
    const figure = document.createElement('figure'), canvas = document.createElement('canvas')
    canvas.setAttribute('role', 'img')
    canvas.setAttribute('aria-label', text)
    show(canvas, image)
    figure.append(canvas, Object.assign(document.createElement('figcaption'), { textContent: text }))
    return figure
}

async function draw() {
    const label = Number(find('.label').value), n = Number(find('.steps').value), from = performance.now()
    find('.draw').disabled = true
    find('.status').textContent = 'The generator is being fetched ...'
    const shown = [...Array(Math.min(n, 8)).keys()].map(i => Math.round((i + 1) * n / Math.min(n, 8)))
    find('.strip').replaceChildren()
    for await (const { step, hidden, image } of steps(label, n, Number(find('.guidance').value))) {
        find('.status').textContent = `step ${step} of ${n}`
        if (shown.includes(step)) find('.strip').append(frame(image, `step ${step}, ${Math.round(100 * hidden / total)} % hidden`))
        await new Promise(requestAnimationFrame)
    }
    find('.status').textContent = `A ${names[label]}, in ${n} steps and ${((performance.now() - from) / 1000).toFixed(1)} s.`
    find('.draw').disabled = false
}

names.forEach((name, i) => find('.label').add(new Option(name, i)))
find('.label').value = names.indexOf('star')
for (const name of ['.steps', '.guidance'])
    find(name).oninput = event => { event.target.nextElementSibling.textContent = event.target.value }
find('.draw').onclick = draw
box.hidden = false
