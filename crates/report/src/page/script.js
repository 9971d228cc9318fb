(function(){
var tip=document.getElementById('tip');if(!tip)return;
function text(x){var a=Math.abs(x);return a!==0&&(a<1e-3||a>=1e6)?x.toExponential(2):String(+x.toPrecision(4));}
document.querySelectorAll('svg[data-chart]').forEach(function(svg){
var d,cross;
function show(e){
if(!d)d=JSON.parse(svg.getAttribute('data-chart'));
var box=svg.getBoundingClientRect(),view=svg.viewBox.baseVal,x=(e.clientX-box.left)/box.width*view.width;
if(x<d[0]-8||x>d[1]+8)return hide();
var want=d[2]+(x-d[0])/Math.max(1,d[1]-d[0])*(d[3]-d[2]),step=null,rows=[];
d[4].forEach(function(l){var v=l[2],b=-1;
for(var i=0;i<v.length;i+=2)if(b<0||Math.abs(v[i]-want)<Math.abs(v[b]-want))b=i;
if(b<0)return;if(step===null||Math.abs(v[b]-want)<Math.abs(step-want))step=v[b];rows.push([l[0],l[1],v[b],v[b+1]]);});
if(step===null)return hide();
tip.textContent='';
var head=document.createElement('div');head.textContent='step '+step;tip.appendChild(head);
rows.forEach(function(r){var p=document.createElement('div'),i=document.createElement('i');i.className='b'+r[1];p.appendChild(i);
p.appendChild(document.createTextNode((r[0]?r[0]+' ':'')+text(r[3])+(r[2]!==step?' (step '+r[2]+')':'')));tip.appendChild(p);});
if(!cross){cross=document.createElementNS(svg.namespaceURI,'line');cross.setAttribute('class','cross');cross.setAttribute('y1',12);cross.setAttribute('y2',176);svg.appendChild(cross);}
var at=d[0]+(d[3]>d[2]?(step-d[2])/(d[3]-d[2]):.5)*(d[1]-d[0]);
cross.setAttribute('x1',at);cross.setAttribute('x2',at);cross.style.display='';
tip.style.display='block';
var left=e.pageX+14;if(left+tip.offsetWidth>document.documentElement.clientWidth-8)left=e.pageX-tip.offsetWidth-14;
tip.style.left=Math.max(4,left)+'px';tip.style.top=(e.pageY-tip.offsetHeight-10)+'px';}
function hide(){tip.style.display='none';if(cross)cross.style.display='none';}
svg.addEventListener('pointermove',show);svg.addEventListener('pointerdown',show);svg.addEventListener('pointerleave',hide);
});
})();
